//! From a table of system calls to a BPF program.
//!
//! The program is a binary search over *runs* of numbers with the same verdict:
//! a Docker-like table has some 50 runs, and the tree over them is installed in
//! a twentieth of the time that a linear list takes (the kernel emulates a
//! filter once for every number when it's installed). Its leaves are short lists, in
//! which a number between two equal runs is one comparison and not two, and a comparison
//! that fails goes on to the next: such a one becomes one instruction of the kernel's, one
//! with two jumps becomes two, and to translate them is the rest of that time. Verdicts that look at
//! arguments are leaves of the same tree. Foreign ABIs end the process: on
//! x86_64 both i386 (another `arch`) and x32 (bit 30 of the number) reach the
//! same kernel code under other numbers.

/// What a filter decides for one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Let it pass.
    Allow,
    /// Let it pass, and note it in the kernel's log.
    Log,
    /// Don't do it; answer this errno.
    Errno(u16),
    /// Don't do it; send SIGSYS, which the program may handle.
    Trap,
    /// Ask a tracer; without one it's ENOSYS.
    Trace(u16),
    /// Don't do it, and end the run. See [`compile`].
    End,
    /// The first rule whose checks all hold decides, else the last verdict.
    Rules(Vec<Rule>, Box<Verdict>),
}

impl Verdict {
    pub(crate) const EPERM: Verdict = Verdict::Errno(libc::EPERM as u16);
    pub(crate) const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS as u16);

    /// Whether it ends a run, for some arguments at least.
    pub(crate) fn can_end(&self) -> bool {
        match self {
            Verdict::End => true,
            Verdict::Rules(rules, last) => last.can_end() || rules.iter().any(|rule| rule.verdict.can_end()),
            _ => false,
        }
    }

    /// Whether it lets the call pass, for some arguments at least.
    pub(crate) fn can_pass(&self) -> bool {
        match self {
            Verdict::Allow | Verdict::Log | Verdict::Trace(_) => true,
            Verdict::Rules(rules, last) => last.can_pass() || rules.iter().any(|rule| rule.verdict.can_pass()),
            Verdict::Errno(_) | Verdict::Trap | Verdict::End => false,
        }
    }
}

/// A conjunction of checks, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) checks: Vec<Check>,
    /// Anything but [`Verdict::Rules`].
    pub(crate) verdict: Verdict,
}

/// A test of one argument, which is named by its place from 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The low 32 bits are exactly this. The kernel truncates the `int` arguments that
    /// our own tables test, so a 64-bit comparison could be bypassed (CVE-2019-10063).
    Is(u8, u32),
    /// The low 32 bits have any of these.
    Has(u8, u32),
    /// All 64 bits compare so to this: what profiles ask for.
    Wide(u8, Comparison, u64),
}

/// How an argument is compared; all numbers are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// What is left under this mask is equal.
    Masked(u64),
}

/// One instruction, as `struct sock_filter` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

const LD_W_ABS: u16 = 0x20;
const ALU_AND: u16 = 0x54;
const JMP_JA: u16 = 0x05;
const JMP_JEQ: u16 = 0x15;
const JMP_JGT: u16 = 0x25;
const JMP_JGE: u16 = 0x35;
const JMP_JSET: u16 = 0x45;
const RET: u16 = 0x06;

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// From this bit on a number is one of the x32 ABI (__X32_SYSCALL_BIT).
pub(crate) const X32: u32 = 0x4000_0000;

/// BPF_MAXINSNS: the longest program that the kernel takes.
pub(crate) const MOST: usize = 4096;

#[cfg(target_arch = "x86_64")]
pub(crate) const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const AUDIT_ARCH: u32 = 0xc000_00b7;

/// The program for a table: runs of numbers in ascending order, the first
/// starting at 0, each with the verdict for all numbers up to the next run.
///
/// With a `listener` what ends the run is told to it (SECCOMP_RET_USER_NOTIF), so that
/// number and architecture can be noted before the kill; the call itself is never made,
/// whether the listener answers or is gone. Without one the kernel kills the process,
/// and all that's left to see is a SIGSYS, which a program can also send to itself.
pub(crate) fn compile(runs: &[(u32, Verdict)], listener: bool) -> Vec<Instruction> {
    let end = if listener { RET_USER_NOTIF } else { RET_KILL_PROCESS };
    let mut program = Backwards { reversed: Vec::new(), end, rules: Vec::new() };
    let mut entry = program.tree(runs);
    if cfg!(target_arch = "x86_64") {
        let foreign = program.give(end);
        entry = program.branch(JMP_JGE, X32, foreign, entry);
    }
    entry = program.load(OFFSET_NR, entry);
    let foreign = program.give(end);
    entry = program.branch(JMP_JEQ, AUDIT_ARCH, entry, foreign);
    program.load(OFFSET_ARCH, entry);
    program.reversed.reverse();
    program.reversed
}

/// A program that is written from its end: jumps only go forward, so every target is
/// known when its jump is written, and equal verdicts can be one instruction. (The
/// kernel's time to install a filter is one of its length, above all.)
struct Backwards {
    reversed: Vec<Instruction>,
    /// What [`Verdict::End`] returns.
    end: u32,
    /// [`Verdict::Rules`] that were written.
    rules: Vec<(Verdict, Label)>,
}

/// An instruction, counted from the end.
type Label = usize;

/// How many comparisons follow one another at the most.
const IN_A_ROW: usize = 8;

/// Near enough for a branch that follows at once, and for its other target.
const REACH: usize = u8::MAX as usize / 2;

/// A number, or the first of a run, with what is decided for it.
type Decision<'a> = (u32, &'a Verdict);

/// Single numbers that lie between two runs with the same verdict, and the runs without them.
fn apart(runs: &[(u32, Verdict)]) -> (Vec<Decision<'_>>, Vec<Decision<'_>>) {
    let (mut single, mut ranges): (Vec<Decision<'_>>, Vec<Decision<'_>>) = (Vec::new(), Vec::new());
    for (at, (start, verdict)) in runs.iter().enumerate() {
        match ranges.last() {
            Some((_, last)) if *last == verdict => {}
            Some((_, last)) if runs.get(at + 1).is_some_and(|(next, then)| *next == start + 1 && then == *last) => {
                single.push((*start, verdict));
            }
            _ => ranges.push((*start, verdict)),
        }
    }
    (single, ranges)
}

impl Backwards {
    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// How far the next instruction would have to jump.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - to - 1
    }

    /// A binary search down to stretches that few comparisons decide.
    fn tree(&mut self, runs: &[(u32, Verdict)]) -> Label {
        let (single, ranges) = apart(runs);
        if single.len() + ranges.len() <= IN_A_ROW {
            return self.row(&single, &ranges);
        }
        let (left, right) = runs.split_at(runs.len() / 2);
        let start = right.first().map_or(0, |(start, _)| *start);
        let right = self.tree(right);
        let left = self.tree(left);
        self.branch(JMP_JGE, start, right, left)
    }

    /// Single numbers first, then ranges from the highest down: what isn't it falls
    /// through to the next comparison.
    fn row(&mut self, single: &[Decision<'_>], ranges: &[Decision<'_>]) -> Label {
        let (_, lowest) = ranges[0];
        let mut next = self.verdict(lowest);
        for (start, verdict) in ranges.iter().skip(1) {
            let here = self.verdict(verdict);
            next = self.branch(JMP_JGE, *start, here, next);
        }
        for (number, verdict) in single {
            let here = self.verdict(verdict);
            next = self.branch(JMP_JEQ, *number, here, next);
        }
        next
    }

    /// A verdict that was written before is jumped to, where it's near.
    fn verdict(&mut self, verdict: &Verdict) -> Label {
        if let Some((_, at)) = self.rules.iter().rev().find(|(of, _)| of == verdict)
            && self.distance(*at) < REACH
        {
            return *at;
        }
        match verdict {
            Verdict::Allow => self.give(RET_ALLOW),
            Verdict::Log => self.give(RET_LOG),
            Verdict::Errno(errno) => self.give(RET_ERRNO | u32::from(*errno)),
            Verdict::Trap => self.give(RET_TRAP),
            Verdict::Trace(message) => self.give(RET_TRACE | u32::from(*message)),
            Verdict::End => self.give(self.end),
            Verdict::Rules(rules, last) => {
                let targets: Vec<Label> = rules.iter().map(|rule| self.verdict(&rule.verdict)).collect();
                let mut next = self.verdict(last);
                // From the second rule on nothing else leads to the next one's first load.
                let mut own = false;
                for (rule, target) in rules.iter().zip(targets).rev() {
                    if let ([check], true) = (rule.checks.as_slice(), own) {
                        next = self.loaded(*check, next);
                    }
                    let mut holds = target;
                    for check in rule.checks.iter().rev() {
                        holds = self.check(*check, holds, next);
                    }
                    next = holds;
                    own = true;
                }
                self.rules.push((verdict.clone(), next));
                next
            }
        }
    }

    fn check(&mut self, check: Check, yes: Label, no: Label) -> Label {
        // Arguments are 64-bit; both architectures are little-endian.
        let at = |argument: u8| OFFSET_ARGS + 8 * u32::from(argument);
        match check {
            Check::Is(argument, value) => {
                let test = self.branch(JMP_JEQ, value, yes, no);
                self.load(at(argument), test)
            }
            Check::Has(argument, bits) => {
                let test = self.branch(JMP_JSET, bits, yes, no);
                self.load(at(argument), test)
            }
            Check::Wide(argument, comparison, value) => self.compare(at(argument), comparison, value, yes, no),
        }
    }

    /// What comes next, which only this check leads to: it needn't load the same again.
    fn loaded(&mut self, check: Check, next: Label) -> Label {
        let (Check::Is(argument, _) | Check::Has(argument, _)) = check else { return next };
        let again = Instruction { code: LD_W_ABS, jt: 0, jf: 0, k: OFFSET_ARGS + 8 * u32::from(argument) };
        if next + 1 == self.reversed.len() && self.reversed[next] == again {
            self.reversed.pop();
            return next - 1;
        }
        next
    }

    /// A comparison in two halves: BPF's accumulator has 32 bits.
    fn compare(&mut self, low: u32, comparison: Comparison, value: u64, yes: Label, no: Label) -> Label {
        let high = low + 4;
        let halves = |value: u64| ((value >> 32) as u32, value as u32);
        let (value_high, value_low) = halves(value);
        match comparison {
            Comparison::NotEqual => self.compare(low, Comparison::Equal, value, no, yes),
            Comparison::Less => self.compare(low, Comparison::GreaterOrEqual, value, no, yes),
            Comparison::LessOrEqual => self.compare(low, Comparison::Greater, value, no, yes),
            Comparison::Equal => {
                let test = self.branch(JMP_JEQ, value_low, yes, no);
                let test = self.load(low, test);
                let test = self.branch(JMP_JEQ, value_high, test, no);
                self.load(high, test)
            }
            Comparison::Greater | Comparison::GreaterOrEqual => {
                let code = if comparison == Comparison::Greater { JMP_JGT } else { JMP_JGE };
                let test = self.branch(code, value_low, yes, no);
                let test = self.load(low, test);
                let test = self.branch(JMP_JEQ, value_high, test, no);
                let test = self.branch(JMP_JGT, value_high, yes, test);
                self.load(high, test)
            }
            Comparison::Masked(mask) => {
                let (mask_high, mask_low) = halves(mask);
                let test = self.branch(JMP_JEQ, value_low, yes, no);
                let test = self.and(mask_low, test);
                let test = self.load(low, test);
                let test = self.branch(JMP_JEQ, value_high, test, no);
                let test = self.and(mask_high, test);
                self.load(high, test)
            }
        }
    }

    fn give(&mut self, k: u32) -> Label {
        let wanted = Instruction { code: RET, jt: 0, jf: 0, k };
        let near = self.reversed.len().saturating_sub(REACH);
        match self.reversed[near..].iter().rposition(|i| *i == wanted) {
            Some(at) => near + at,
            None => self.push(wanted),
        }
    }

    fn load(&mut self, offset: u32, then: Label) -> Label {
        self.near(then, 0);
        self.push(Instruction { code: LD_W_ABS, jt: 0, jf: 0, k: offset })
    }

    fn and(&mut self, mask: u32, then: Label) -> Label {
        self.near(then, 0);
        self.push(Instruction { code: ALU_AND, jt: 0, jf: 0, k: mask })
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        // A trampoline for one target moves the other one further away by one.
        let yes = self.near(yes, usize::from(u8::MAX) - 1);
        let no = self.near(no, usize::from(u8::MAX));
        let distance = |to| self.distance(to) as u8;
        let (jt, jf) = (distance(yes), distance(no));
        self.push(Instruction { code, jt, jf, k })
    }

    /// This target, or a jump to it if it's further away than this.
    fn near(&mut self, target: Label, reach: usize) -> Label {
        match self.distance(target) {
            distance if distance <= reach => target,
            distance => self.push(Instruction { code: JMP_JA, jt: 0, jf: 0, k: distance as u32 }),
        }
    }
}

/// Whether the kernel's checker takes a program (bpf_check_classic): it's not too long,
/// every jump stays inside, and it ends with a verdict.
pub(crate) fn is_well_formed(program: &[Instruction]) -> bool {
    let ends = program.last().is_some_and(|last| last.code == RET);
    let inside = |(at, i): (usize, &Instruction)| {
        let left = program.len() - at - 1;
        match i.code {
            JMP_JA => (i.k as usize) < left,
            JMP_JEQ | JMP_JGT | JMP_JGE | JMP_JSET => usize::from(i.jt.max(i.jf)) < left,
            LD_W_ABS => i.k.is_multiple_of(4) && i.k < 64,
            RET | ALU_AND => true,
            _ => false,
        }
    };
    ends && program.len() <= MOST && program.iter().enumerate().all(inside)
}

/// Runs a program as the kernel would; for tests, which compare compilers.
#[cfg(test)]
pub(crate) fn interpret(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    for (i, arg) in args.iter().enumerate() {
        data[16 + 8 * i..24 + 8 * i].copy_from_slice(&arg.to_le_bytes());
    }
    let (mut a, mut at) = (0u32, 0usize);
    loop {
        let i = program[at];
        at += 1;
        let taken = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            LD_W_ABS => {
                let offset = i.k as usize;
                a = u32::from_le_bytes(data[offset..offset + 4].try_into().expect("four bytes"));
            }
            JMP_JA => at += i.k as usize,
            JMP_JEQ => at += taken(a == i.k),
            JMP_JGE => at += taken(a >= i.k),
            JMP_JSET => at += taken(a & i.k != 0),
            JMP_JGT => at += taken(a > i.k),
            ALU_AND => a &= i.k,
            RET => return i.k,
            code => panic!("instruction {code:#x} isn't known here"),
        }
    }
}

/// What a verdict comes to, computed without a program; for tests, which compare.
#[cfg(test)]
pub(crate) fn reference(runs: &[(u32, Verdict)], listener: bool, number: u32, args: [u64; 6]) -> u32 {
    fn holds(check: &Check, args: [u64; 6]) -> bool {
        match *check {
            Check::Is(i, value) => args[usize::from(i)] as u32 == value,
            Check::Has(i, bits) => args[usize::from(i)] as u32 & bits != 0,
            Check::Wide(i, comparison, value) => {
                let argument = args[usize::from(i)];
                match comparison {
                    Comparison::Equal => argument == value,
                    Comparison::NotEqual => argument != value,
                    Comparison::Less => argument < value,
                    Comparison::LessOrEqual => argument <= value,
                    Comparison::Greater => argument > value,
                    Comparison::GreaterOrEqual => argument >= value,
                    Comparison::Masked(mask) => argument & mask == value,
                }
            }
        }
    }
    fn decide(verdict: &Verdict, end: u32, args: [u64; 6]) -> u32 {
        match verdict {
            Verdict::Allow => RET_ALLOW,
            Verdict::Log => RET_LOG,
            Verdict::Errno(errno) => RET_ERRNO | u32::from(*errno),
            Verdict::Trap => RET_TRAP,
            Verdict::Trace(message) => RET_TRACE | u32::from(*message),
            Verdict::End => end,
            Verdict::Rules(rules, last) => {
                let first = rules.iter().find(|rule| rule.checks.iter().all(|check| holds(check, args)));
                decide(first.map_or(last, |rule| &rule.verdict), end, args)
            }
        }
    }
    let verdict = runs.iter().rev().find(|(start, _)| *start <= number).map(|(_, v)| v).expect("a run starts at 0");
    decide(verdict, if listener { RET_USER_NOTIF } else { RET_KILL_PROCESS }, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_gets_the_verdict_of_its_run() {
        let rules = Verdict::Rules(
            vec![
                Rule { checks: vec![Check::Is(0, 16), Check::Is(2, 0)], verdict: Verdict::Allow },
                Rule { checks: vec![Check::Has(1, 0o6000)], verdict: Verdict::Errno(1) },
            ],
            Box::new(Verdict::Errno(97)),
        );
        let mut runs = vec![(0, Verdict::Allow), (7, rules.clone())];
        for i in 0..300 {
            let verdict = if i % 3 == 0 { rules.clone() } else { Verdict::Errno(i as u16) };
            runs.push((10 + 2 * i, verdict));
        }
        runs.push((700, Verdict::End));
        runs.push((701, Verdict::Errno(38)));
        for listener in [false, true] {
            let program = compile(&runs, listener);
            for number in (0..1000).chain([0x3fff_ffff]) {
                for args in [[0; 6], [16, 0, 0, 0, 0, 0], [16, 0o4755, 1, 0, 0, 0], [1 << 32 | 16, 0, 0, 0, 0, 0]] {
                    let expected = reference(&runs, listener, number, args);
                    assert_eq!(interpret(&program, AUDIT_ARCH, number, args), expected, "number {number}, {args:x?}");
                }
            }
        }
    }

    #[test]
    fn wide_comparisons_see_all_64_bits() {
        use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, Masked, NotEqual};
        let values = [0, 1, 5, 6, 7, u64::from(u32::MAX), 1 << 32, 1 << 32 | 5, 1 << 32 | 6, 1 << 32 | 7, 2 << 32, 2 << 32 | 6, u64::MAX];
        for comparison in [Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual, Masked(u64::MAX), Masked(6), Masked(1 << 32 | 2)] {
            for value in values {
                let rule = Rule { checks: vec![Check::Wide(3, comparison, value)], verdict: Verdict::Allow };
                let runs = [(0, Verdict::Rules(vec![rule], Box::new(Verdict::EPERM)))];
                let program = compile(&runs, false);
                for argument in values {
                    let args = [9, 9, 9, argument, 9, 9];
                    let expected = reference(&runs, false, 1, args);
                    assert_eq!(interpret(&program, AUDIT_ARCH, 1, args), expected, "{argument:#x} {comparison:?} {value:#x}");
                }
            }
        }
    }

    #[test]
    fn a_foreign_abi_ends_the_process() {
        for (listener, end) in [(false, RET_KILL_PROCESS), (true, RET_USER_NOTIF)] {
            let program = compile(&[(0, Verdict::Allow)], listener);
            assert_eq!(interpret(&program, AUDIT_ARCH, 39, [0; 6]), RET_ALLOW);
            assert_eq!(interpret(&program, 0x4000_0003, 39, [0; 6]), end, "i386");
            if cfg!(target_arch = "x86_64") {
                assert_eq!(interpret(&program, AUDIT_ARCH, 0x4000_0000 | 39, [0; 6]), end, "x32");
                assert_eq!(interpret(&program, AUDIT_ARCH, u32::MAX, [0; 6]), end);
            }
        }
    }
}
