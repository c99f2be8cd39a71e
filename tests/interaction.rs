//! Programs that talk: verdicts by cause, standstills, limits, transcripts.

mod support;

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam::{Conversation, ErrorKind, Exit, Interaction, Limit, Party, Sandbox, Verdict, WaitReason};
use support::processes::{eventually, marked, marker};
use support::{Need, compile_c, shell};

const LONG: Duration = Duration::from_secs(120);
const GUESS: Need = Need::Program("guess");

fn sandbox() -> Sandbox {
    static PROGRAM: OnceLock<std::path::PathBuf> = OnceLock::new();
    let program: &Path = PROGRAM.get_or_init(|| compile_c("guess", include_str!("programs/guess.c"), &[]));
    Sandbox::new().bind(program, "/guess").wall_time(support::patience(LONG))
}

/// A judge and a player, not yet running.
fn pair(judge: [&str; 2], player: &str, recipe: &Sandbox) -> (Interaction, Party, Party) {
    let mut talk = Interaction::new();
    let judge = talk.judge(sandbox(), ["/guess", judge[0], judge[1]]);
    let player = talk.player(recipe, ["/guess", "player", player]);
    talk.connect(judge, player);
    (talk, judge, player)
}

fn guess(judge: &str, player: &str, recipe: &Sandbox) -> Conversation {
    pair(["judge", judge], player, recipe).0.run().expect("it runs")
}

/// What each pair comes to, whoever is quicker.
fn check_all_pairs() {
    let plain = sandbox();
    let short = plain.clone().wall_time(Duration::from_millis(300));
    let failed = |talk: &Conversation, exit| matches!(talk.verdict, Verdict::Failed(_, found) if found == exit);
    let abort = Exit::Signal(6);
    let cases: &[(&str, &str, &Sandbox, Result<Verdict, Exit>)] = &[
        ("plain", "right", &plain, Ok(Verdict::Accepted)),
        ("plain", "right-then-listens", &plain, Ok(Verdict::Accepted)),
        ("plain", "right-then-crashes", &plain, Err(abort)),
        ("plain", "wrong", &plain, Ok(Verdict::Rejected(1))),
        ("plain", "wrong-then-crashes", &plain, Ok(Verdict::Rejected(1))),
        ("plain", "wrong-then-spins", &plain, Ok(Verdict::Rejected(1))),
        ("plain", "crashes", &plain, Err(abort)),
        ("fragile", "crashes", &plain, Err(abort)),
        ("plain", "fails", &plain, Err(Exit::Code(7))),
        ("plain", "closes", &plain, Ok(Verdict::Rejected(1))),
        ("plain", "closes-and-ends", &plain, Ok(Verdict::Rejected(1))),
        ("plain", "closes-and-crashes", &plain, Err(abort)),
        ("plain", "leaves", &plain, Ok(Verdict::Rejected(1))),
        ("plain", "floods", &plain, Ok(Verdict::Rejected(1))),
        ("plain", "hangs", &short, Err(Exit::Limit(Limit::WallTime))),
        ("plain", "listens", &plain, Ok(Verdict::Idle)),
        ("crashes", "right", &plain, Ok(Verdict::JudgeFailed(abort))),
        ("crashes", "floods", &plain, Ok(Verdict::JudgeFailed(abort))),
        ("errs", "right", &plain, Ok(Verdict::JudgeFailed(Exit::Code(3)))),
    ];
    for (judge, player, recipe, wanted) in cases {
        let talk = guess(judge, player, recipe);
        let right = match wanted {
            Ok(verdict) => talk.verdict == *verdict,
            Err(exit) => failed(&talk, *exit),
        };
        assert!(right, "{judge}, {player}: {} instead of {wanted:?}; ends {:?}", talk.verdict, talk.ends);
        if matches!(wanted, Err(Exit::Signal(_) | Exit::Limit(_))) && *player != "right-then-crashes" {
            assert!(!talk.ends[0].is_judge(), "{judge}, {player}: the cause is first");
        }
    }
}

fn verdicts_follow_causes_and_not_the_clock() {
    // COFFERDAM_TEST_ROUNDS=1000 is the full measure.
    let rounds = std::env::var("COFFERDAM_TEST_ROUNDS").map_or(3, |n| n.parse().expect("a number"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let spin = || {
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        // More that want to run than processors.
        (0..3).for_each(|_| drop(scope.spawn(spin)));
        let result = std::panic::catch_unwind(|| {
            (0..rounds).for_each(|round| {
                check_all_pairs();
                if round % 100 == 99 {
                    eprintln!("{} rounds", round + 1);
                }
            })
        });
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn a_standstill_says_who_waits_for_whom() {
    let (talk, judge, player) = pair(["judge", "plain"], "listens", &sandbox());
    let talk = talk.run().expect("it runs");
    assert_eq!(talk.verdict, Verdict::Idle);
    let waits: Vec<_> = talk.waits.iter().map(|wait| (wait.party, wait.on, wait.reason)).collect();
    assert_eq!(waits, [(judge, player, WaitReason::Input), (player, judge, WaitReason::Input)]);
    assert_eq!(talk.waits[0].to_string(), "the judge waits for input of player 1");
    assert_eq!(talk.output(player).status, Exit::Killed);
}

fn two_that_only_write_wait_for_room() {
    let mut talk = Interaction::new();
    let one = talk.player(sandbox(), shell("exec cat /dev/zero"));
    let other = talk.player(sandbox(), shell("exec cat /dev/zero"));
    talk.connect(one, other);
    let talk = talk.run().expect("it runs");
    assert_eq!(talk.verdict, Verdict::Idle);
    assert!(talk.waits.iter().all(|wait| wait.reason == WaitReason::Room) && talk.waits.len() == 2, "{:?}", talk.waits);
    assert!(talk.pipes.iter().all(|pipe| pipe.bytes <= 3 * 65_536), "{:?}", talk.pipes);
}

fn a_party_that_waits_for_the_clock_is_not_at_a_standstill() {
    let mut talk = Interaction::new();
    let judge = talk.judge(sandbox(), shell("read x; test $x = late"));
    let player = talk.player(sandbox(), shell("sleep 1; echo late"));
    talk.connect(judge, player);
    assert_eq!(talk.run().expect("it runs").verdict, Verdict::Accepted);
}

fn idle_time_ends_those_who_wait_for_the_clock() {
    let mut talk = Interaction::new();
    let judge = talk.judge(sandbox(), shell("read x"));
    let player = talk.player(sandbox(), shell("exec sleep 1000"));
    talk.connect(judge, player).idle_time(Duration::from_millis(200));
    let talk = talk.run().expect("it runs");
    assert_eq!(talk.verdict, Verdict::Idle);
    assert!(talk.waits.iter().any(|wait| wait.party == judge && wait.on == player), "{:?}", talk.waits);
}

fn output_has_a_limit_in_each_pipe() {
    let (talk, _, player) = pair(["swallow", ""], "floods", &sandbox().output(1 << 20));
    let talk = talk.run().expect("it runs");
    assert_eq!(talk.verdict, Verdict::Failed(player, Exit::Limit(Limit::Output)));
    let written = talk.pipes.iter().find(|pipe| pipe.from == player).expect("its pipe").bytes;
    assert!((1 << 20..(1 << 20) + 256 * 1024).contains(&written), "{written}");
}

fn who_hangs_after_the_verdict_is_ended() {
    let (mut talk, judge, player) = pair(["judge", "plain"], "right-then-spins", &sandbox());
    talk.grace(Duration::from_millis(200));
    let talk = talk.run().expect("it runs");
    assert_eq!(talk.verdict, Verdict::Failed(player, Exit::Killed));
    assert_eq!(talk.output(judge).status, Exit::Code(0));
}

fn a_manager_has_two_players() {
    let manager = "echo 3 >&3; echo 4 >&5; read a <&4; read b <&6; test $a = 9 -a $b = 16";
    for (second, wanted) in [("read n; echo $((n * n))", None), ("kill -SEGV $$", Some(Exit::Signal(11)))] {
        let mut talk = Interaction::new();
        let judge = talk.judge(sandbox(), shell(manager));
        let players = ["read n; echo $((n * n))", second].map(|script| talk.player(sandbox(), shell(script)));
        for (first, player) in [(3, players[0]), (5, players[1])] {
            talk.pipe((judge, first), (player, 0)).pipe((player, 1), (judge, first + 1));
        }
        let verdict = talk.run().expect("it runs").verdict;
        assert_eq!(verdict, wanted.map_or(Verdict::Accepted, |exit| Verdict::Failed(players[1], exit)));
    }
}

fn a_transcript_has_a_bound() {
    let (mut talk, judge, player) = pair(["judge", "plain"], "right", &sandbox());
    talk.transcript(4096);
    let whole = talk.run().expect("it runs");
    let first: Vec<_> = whole.transcript[..3].iter().map(|message| (message.from, &message.bytes[..])).collect();
    assert_eq!(first, [(player, &b"500\n"[..]), (judge, b"<\n"), (player, b"750\n")]);
    assert_eq!(whole.transcript.last().map(|message| &message.bytes[..]), Some(&b"=\n"[..]));
    assert!(!whole.transcript_truncated && whole.transcript.is_sorted_by_key(|message| message.at));
    let (mut talk, ..) = pair(["swallow", ""], "floods", &sandbox().output(1 << 20));
    talk.transcript(10_000);
    let part = talk.run().expect("it runs");
    assert!(part.transcript_truncated);
    assert_eq!(part.transcript.iter().map(|message| message.bytes.len() + 64).sum::<usize>(), 10_000);
}

fn the_rest_of_the_streams_is_as_in_any_run() {
    let mut talk = Interaction::new();
    let judge = talk.judge(sandbox(), shell("echo looking >&2; read x"));
    let player = talk.player(sandbox(), shell("seq 100000 >&2; echo x"));
    talk.connect(judge, player);
    let talk = talk.run().expect("it runs");
    assert_eq!(talk.output(judge).stderr, b"looking\n");
    assert_eq!(talk.output(player).stderr.len(), 588_895);
    assert!(talk.verdict.accepted());
}

fn what_makes_no_sense_is_refused() {
    let player = |talk: &mut Interaction| talk.player(Sandbox::new(), "true");
    let alone = {
        let mut talk = Interaction::new();
        player(&mut talk);
        talk
    };
    let itself = {
        let mut talk = Interaction::new();
        let one = player(&mut talk);
        player(&mut talk);
        talk.connect(one, one);
        talk
    };
    let twice = {
        let mut talk = Interaction::new();
        let (a, b) = (player(&mut talk), player(&mut talk));
        talk.connect(a, b).connect(b, a);
        talk
    };
    let judges = {
        let mut talk = Interaction::new();
        talk.judge(Sandbox::new(), "true");
        talk.judge(Sandbox::new(), "true");
        talk
    };
    let codes = {
        let mut talk = Interaction::new();
        player(&mut talk);
        player(&mut talk);
        talk.codes([0], [0]);
        talk
    };
    let idle = {
        let mut talk = Interaction::new();
        player(&mut talk);
        talk.player(Sandbox::new().idle_time(LONG), "true");
        talk
    };
    for talk in [alone, itself, twice, judges, codes, idle] {
        assert_eq!(talk.run().expect_err("it makes no sense").kind(), ErrorKind::Invalid);
    }
}

fn an_error_kills_the_others() {
    let marker = marker();
    let mut talk = Interaction::new();
    let judge = talk.judge(sandbox(), ["sleep", &marker]);
    let player = talk.player(sandbox(), "/no/such/program");
    talk.connect(judge, player);
    let error = talk.run().expect_err("it can't start");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().starts_with("player 1: "), "{error}");
    eventually(LONG, "nobody is left", || marked(&marker).is_empty());
}

fn another_thread_can_kill_it() {
    let marker = marker();
    let mut talk = Interaction::new();
    let judge = talk.judge(sandbox(), "cat");
    let player = talk.player(sandbox(), shell(&format!("echo one; sleep {marker}; :")));
    talk.connect(judge, player).transcript(1000);
    let talk = talk.start().expect("it starts");
    let killer = talk.killer();
    let thread = std::thread::spawn(move || {
        eventually(LONG, "it sleeps", || marked(&format!("sleep\0{marker}")).len() == 1);
        killer.kill().expect("told");
        (killer, marker)
    });
    let outcome = talk.wait().expect("a verdict");
    assert_eq!(outcome.verdict, Verdict::Killed);
    assert_eq!(outcome.transcript[0].bytes, b"one\n");
    assert!([judge, player].iter().all(|party| outcome.output(*party).status == Exit::Killed));
    let (killer, marker) = thread.join().expect("a thread");
    assert_eq!(marked(&marker), []);
    killer.kill().expect("harmless afterwards");
}

fn a_kill_that_comes_too_late_changes_nothing() {
    for (code, verdict) in [(0, Verdict::Accepted), (1, Verdict::Rejected(1))] {
        let mut talk = Interaction::new();
        let judge = talk.judge(sandbox(), shell(&format!("read x; exit {code}")));
        let player = talk.player(sandbox(), shell("echo x"));
        talk.connect(judge, player);
        let talk = talk.start().expect("it starts");
        let killer = talk.killer();
        let outcome = talk.wait().expect("a verdict");
        killer.kill().expect("harmless");
        assert_eq!(outcome.verdict, verdict);
    }
}

fn dropping_it_kills_all() {
    let marker = marker();
    let mut talk = Interaction::new();
    for _ in 0..3 {
        talk.player(sandbox(), ["sleep", &marker]);
    }
    let talk = talk.start().expect("they start");
    // exec has let go of PID 1 a moment before the command line shows.
    eventually(LONG, "they are there", || marked(&format!("sleep\0{marker}")).len() == 3);
    drop(talk);
    assert_eq!(marked(&marker), []);
}

fn live_sandboxes_can_talk() {
    let (one, other) = (sandbox().start().expect("it starts"), sandbox().start().expect("it starts"));
    one.write("/tmp/secret", "9\n").expect("written");
    for (answer, verdict) in [("9", Verdict::Accepted), ("8", Verdict::Rejected(1))] {
        let mut talk = Interaction::new();
        let judge = talk.judge(&one, shell("read x; test $x = $(cat /tmp/secret)"));
        let player = talk.player(&other, shell(&format!("echo {answer}; cat")));
        talk.connect(judge, player);
        assert_eq!(talk.run().expect("it runs").verdict, verdict);
        assert!(other.run("true").expect("it goes on").success());
    }
    let mut talk = Interaction::new();
    let judge = talk.judge(&one, "cat");
    let player = talk.player(sandbox(), "cat");
    talk.connect(judge, player);
    assert_eq!(talk.run().expect("it runs").verdict, Verdict::Idle, "a standstill is seen there too");
    let mut talk = Interaction::new();
    talk.player(&one, "true");
    talk.player(&one, "true");
    assert_eq!(talk.run().expect_err("they could hurt each other").kind(), ErrorKind::Invalid);
}

fn main() {
    support::main(vec![
        test!(verdicts_follow_causes_and_not_the_clock, GUESS),
        test!(a_standstill_says_who_waits_for_whom, GUESS),
        test!(two_that_only_write_wait_for_room, GUESS),
        test!(a_party_that_waits_for_the_clock_is_not_at_a_standstill, GUESS),
        test!(idle_time_ends_those_who_wait_for_the_clock, GUESS),
        test!(output_has_a_limit_in_each_pipe, GUESS),
        test!(who_hangs_after_the_verdict_is_ended, GUESS),
        test!(a_manager_has_two_players, GUESS),
        test!(a_transcript_has_a_bound, GUESS),
        test!(the_rest_of_the_streams_is_as_in_any_run, GUESS),
        test!(what_makes_no_sense_is_refused),
        test!(an_error_kills_the_others, GUESS),
        test!(another_thread_can_kill_it, GUESS),
        test!(a_kill_that_comes_too_late_changes_nothing, GUESS),
        test!(dropping_it_kills_all, GUESS),
        test!(live_sandboxes_can_talk, GUESS),
    ]);
}
