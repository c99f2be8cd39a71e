//! From what the parties did to the verdict: one table, without any I/O.

use std::fmt;

use super::Party;
use crate::outcome::Exit;

/// What came of an [`Interaction`](super::Interaction). Its documentation has the rules.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The judge accepted, or there's none, and every player ended well.
    Accepted,
    /// The judge said no, with this exit code.
    Rejected(i32),
    /// This player failed: it ended by itself with another code than 0, by a signal or by
    /// a limit, or had to be [killed](Exit::Killed) because it didn't end.
    Failed(Party, Exit),
    /// The judge is broken: no player is to blame.
    JudgeFailed(Exit),
    /// The caller [killed](super::Talk::kill) it.
    Killed,
    /// Everybody waited for somebody: see
    /// [`Conversation::waits`](super::Conversation::waits).
    Idle,
}

impl Verdict {
    /// Whether it's `Accepted`.
    pub fn accepted(self) -> bool {
        self == Verdict::Accepted
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accepted => f.write_str("accepted"),
            Verdict::Rejected(code) => write!(f, "rejected by the judge with exit code {code}"),
            Verdict::Failed(party, exit) => write!(f, "{party} failed: {exit}"),
            Verdict::JudgeFailed(exit) => write!(f, "the judge failed: {exit}"),
            Verdict::Killed => f.write_str("killed by the caller"),
            Verdict::Idle => f.write_str("everybody waited for somebody"),
        }
    }
}

/// What exit codes of the judge mean.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    pub(super) accept: Vec<i32>,
    pub(super) reject: Vec<i32>,
}

/// Why the parties were killed before it came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Caller,
    Standstill,
}

/// How one party ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) party: Party,
    pub(super) exit: Exit,
    /// On CLOCK_MONOTONIC.
    pub(super) at: u64,
    /// It had been given the end of file of a judge that had ended, or of a player that
    /// had failed.
    pub(super) told: bool,
}

impl Seen {
    /// Of its own accord: whatever it did then can't have come from another's end.
    pub(super) fn failed_alone(&self) -> bool {
        !self.told && !self.exit.success() && self.exit != Exit::Killed
    }

    /// The judge's own word.
    pub(super) fn judged_alone(&self) -> bool {
        self.party.is_judge() && !self.told && self.exit != Exit::Killed
    }
}

pub(super) fn verdict(seen: &[Seen], codes: &Codes, cut: Option<Cut>) -> Verdict {
    let judge = seen.iter().find(|one| one.party.is_judge());
    let players = || seen.iter().filter(|one| !one.party.is_judge());
    let rule = judge.filter(|judge| judge.judged_alone()).map(|judge| match judge.exit {
        Exit::Code(code) if codes.accept.contains(&code) => Verdict::Accepted,
        Exit::Code(code) if codes.reject.contains(&code) => Verdict::Rejected(code),
        exit => Verdict::JudgeFailed(exit),
    });
    if let Some(no) = rule.filter(|rule| !rule.accepted()) {
        return no;
    }
    // Who is left might still have changed everything else.
    if cut == Some(Cut::Caller) && seen.iter().any(|one| one.exit == Exit::Killed) {
        return Verdict::Killed;
    }
    if let Some(first) = players().filter(|one| one.failed_alone()).min_by_key(|one| one.at) {
        return Verdict::Failed(first.party, first.exit);
    }
    if cut == Some(Cut::Standstill) {
        return Verdict::Idle;
    }
    // Whoever hangs after the verdict, without having looked for an end of file.
    if let Some(late) = players().find(|one| one.exit == Exit::Killed && !one.told) {
        return Verdict::Failed(late.party, late.exit);
    }
    match judge {
        // It didn't end by itself, and no player is to blame.
        Some(judge) if rule.is_none() => Verdict::JudgeFailed(judge.exit),
        _ => Verdict::Accepted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Limit;

    const JUDGE: Party = Party { index: 0, player: 0 };
    const ONE: Party = Party { index: 1, player: 1 };
    const TWO: Party = Party { index: 2, player: 2 };

    fn seen(party: Party, exit: Exit, at: u64, told: bool) -> Seen {
        Seen { party, exit, at, told }
    }

    fn of(seen: &[Seen]) -> Verdict {
        verdict(seen, &Codes { accept: vec![0], reject: vec![1, 2] }, None)
    }

    #[test]
    fn each_order_of_ends_has_its_rule() {
        let (good, bad, abort, killed) = (Exit::Code(0), Exit::Code(1), Exit::Signal(6), Exit::Killed);
        let cases = [
            ("both end well", seen(JUDGE, good, 1, false), seen(ONE, good, 2, false), Verdict::Accepted),
            ("whoever is first", seen(JUDGE, good, 2, false), seen(ONE, good, 1, false), Verdict::Accepted),
            ("wrong, then a crash of it", seen(JUDGE, bad, 1, false), seen(ONE, abort, 2, true), Verdict::Rejected(1)),
            ("wrong beside a crash", seen(JUDGE, bad, 2, false), seen(ONE, abort, 1, false), Verdict::Rejected(1)),
            ("a crash, then wrong of it", seen(JUDGE, bad, 2, true), seen(ONE, abort, 1, false), Verdict::Failed(ONE, abort)),
            ("a crash crashes the judge", seen(JUDGE, abort, 2, true), seen(ONE, abort, 1, false), Verdict::Failed(ONE, abort)),
            ("right beside a crash", seen(JUDGE, good, 1, false), seen(ONE, abort, 2, false), Verdict::Failed(ONE, abort)),
            ("right, then a crash of it", seen(JUDGE, good, 1, false), seen(ONE, abort, 2, true), Verdict::Accepted),
            ("right after a crash", seen(JUDGE, good, 2, true), seen(ONE, abort, 1, false), Verdict::Failed(ONE, abort)),
            ("the judge crashes", seen(JUDGE, abort, 1, false), seen(ONE, killed, 2, false), Verdict::JudgeFailed(abort)),
            ("both crash", seen(JUDGE, abort, 2, false), seen(ONE, abort, 1, false), Verdict::JudgeFailed(abort)),
            ("another code", seen(JUDGE, Exit::Code(3), 1, false), seen(ONE, good, 2, false), Verdict::JudgeFailed(Exit::Code(3))),
            ("it hangs afterwards", seen(JUDGE, good, 1, false), seen(ONE, killed, 2, false), Verdict::Failed(ONE, killed)),
            ("it hangs, but knows", seen(JUDGE, good, 1, false), seen(ONE, killed, 2, true), Verdict::Accepted),
            ("the judge hangs after a crash", seen(JUDGE, killed, 2, true), seen(ONE, abort, 1, false), Verdict::Failed(ONE, abort)),
        ];
        for (name, judge, player, wanted) in cases {
            assert_eq!(of(&[judge, player]), wanted, "{name}");
        }
        let over = Exit::Limit(Limit::WallTime);
        assert_eq!(of(&[seen(JUDGE, over, 1, false), seen(ONE, killed, 2, false)]), Verdict::JudgeFailed(over));
        assert_eq!(of(&[seen(JUDGE, bad, 2, true), seen(ONE, over, 1, false)]), Verdict::Failed(ONE, over));
    }

    #[test]
    fn of_several_players_the_first_that_failed_by_itself_is_to_blame() {
        let (bad, abort) = (Exit::Code(1), Exit::Signal(6));
        let ends = [seen(JUDGE, bad, 9, true), seen(ONE, abort, 7, false), seen(TWO, bad, 5, false)];
        assert_eq!(of(&ends), Verdict::Failed(TWO, bad));
        let told = [seen(JUDGE, bad, 9, true), seen(ONE, abort, 7, false), seen(TWO, bad, 5, true)];
        assert_eq!(of(&told), Verdict::Failed(ONE, abort));
    }

    #[test]
    fn without_a_judge_all_have_to_end_well() {
        let (good, bad) = (Exit::Code(0), Exit::Code(1));
        assert_eq!(of(&[seen(ONE, good, 1, false), seen(TWO, good, 2, false)]), Verdict::Accepted);
        assert_eq!(of(&[seen(ONE, good, 1, false), seen(TWO, bad, 2, false)]), Verdict::Failed(TWO, bad));
        assert_eq!(of(&[seen(ONE, Exit::Code(4), 1, false), seen(TWO, bad, 2, true)]), Verdict::Failed(ONE, Exit::Code(4)));
    }

    #[test]
    fn a_standstill_is_nobodys_fault_but_a_failure_before_it_is() {
        let codes = Codes { accept: vec![0], reject: vec![1] };
        let killed = |party| seen(party, Exit::Killed, 9, false);
        assert_eq!(verdict(&[killed(JUDGE), killed(ONE)], &codes, Some(Cut::Standstill)), Verdict::Idle);
        let crash = seen(TWO, Exit::Signal(11), 1, false);
        assert_eq!(verdict(&[killed(JUDGE), killed(ONE), crash], &codes, Some(Cut::Standstill)), Verdict::Failed(TWO, Exit::Signal(11)));
    }

    #[test]
    fn the_callers_kill_hides_everything_but_the_judges_no() {
        let codes = Codes { accept: vec![0], reject: vec![1] };
        let (good, bad, abort, killed) = (Exit::Code(0), Exit::Code(1), Exit::Signal(6), Exit::Killed);
        let of = |judge, player| {
            let seen = [seen(JUDGE, judge, 1, false), seen(ONE, player, 2, false)];
            verdict(&seen, &codes, Some(Cut::Caller))
        };
        assert_eq!(of(killed, killed), Verdict::Killed);
        assert_eq!(of(killed, abort), Verdict::Killed, "the judge might have rejected it");
        assert_eq!(of(good, killed), Verdict::Killed, "it might have failed");
        assert_eq!(of(bad, killed), Verdict::Rejected(1));
        assert_eq!(of(abort, killed), Verdict::JudgeFailed(abort));
        assert_eq!(of(good, good), Verdict::Accepted, "it came too late");
        assert_eq!(of(good, abort), Verdict::Failed(ONE, abort), "it came too late");
    }
}
