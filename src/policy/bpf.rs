//! From a table of system calls to a BPF program.
//!
//! The program is a binary search over *runs* of numbers with the same verdict:
//! a Docker-like table has some 50 runs, and the tree over them is installed in
//! a twentieth of the time that a linear list takes (the kernel emulates a
//! filter once for every number when it's installed). Verdicts that look at
//! arguments are leaves of the same tree. Foreign ABIs end the process: on
//! x86_64 both i386 (another `arch`) and x32 (bit 30 of the number) reach the
//! same kernel code under other numbers.

/// What a filter decides for one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Let it pass.
    Allow,
    /// Don't do it; answer this errno.
    Errno(u16),
    /// The first rule whose checks all hold decides, else the last verdict.
    Rules(Vec<Rule>, Box<Verdict>),
}

/// A conjunction of checks, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) checks: Vec<Check>,
    /// [`Verdict::Allow`] or [`Verdict::Errno`].
    pub(crate) verdict: Verdict,
}

/// A test of the low 32 bits of an argument. The kernel truncates the `int`
/// arguments that we test, so a 64-bit comparison could be bypassed
/// (CVE-2019-10063).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The argument is exactly this.
    Is(u8, u32),
    /// The argument has any of these bits.
    Has(u8, u32),
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
const JMP_JA: u16 = 0x05;
const JMP_JEQ: u16 = 0x15;
const JMP_JGE: u16 = 0x35;
const JMP_JSET: u16 = 0x45;
const RET: u16 = 0x06;

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

#[cfg(target_arch = "x86_64")]
pub(crate) const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const AUDIT_ARCH: u32 = 0xc000_00b7;

/// The program for a table: runs of numbers in ascending order, the first
/// starting at 0, each with the verdict for all numbers up to the next run.
pub(crate) fn compile(runs: &[(u32, Verdict)]) -> Vec<Instruction> {
    let mut program = Backwards { reversed: Vec::new() };
    let mut entry = program.tree(runs);
    if cfg!(target_arch = "x86_64") {
        let foreign = program.give(RET_KILL_PROCESS);
        entry = program.branch(JMP_JGE, 0x4000_0000, foreign, entry);
    }
    entry = program.load(OFFSET_NR, entry);
    let foreign = program.give(RET_KILL_PROCESS);
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
}

/// An instruction, counted from the end.
type Label = usize;

impl Backwards {
    fn push(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// How far the next instruction would have to jump.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - to - 1
    }

    fn tree(&mut self, runs: &[(u32, Verdict)]) -> Label {
        if let [(_, verdict)] = runs {
            return self.verdict(verdict);
        }
        let (left, right) = runs.split_at(runs.len() / 2);
        let start = right.first().map_or(0, |(start, _)| *start);
        let right = self.tree(right);
        let left = self.tree(left);
        self.branch(JMP_JGE, start, right, left)
    }

    fn verdict(&mut self, verdict: &Verdict) -> Label {
        match verdict {
            Verdict::Allow => self.give(RET_ALLOW),
            Verdict::Errno(errno) => self.give(RET_ERRNO | u32::from(*errno)),
            Verdict::Rules(rules, last) => {
                let mut next = self.verdict(last);
                for rule in rules.iter().rev() {
                    let mut holds = self.verdict(&rule.verdict);
                    for check in rule.checks.iter().rev() {
                        let (code, argument, value) = match *check {
                            Check::Is(argument, value) => (JMP_JEQ, argument, value),
                            Check::Has(argument, bits) => (JMP_JSET, argument, bits),
                        };
                        let test = self.branch(code, value, holds, next);
                        // Arguments are 64-bit; both architectures are little-endian.
                        holds = self.load(OFFSET_ARGS + 8 * u32::from(argument), test);
                    }
                    next = holds;
                }
                next
            }
        }
    }

    fn give(&mut self, k: u32) -> Label {
        let wanted = Instruction { code: RET, jt: 0, jf: 0, k };
        // Near enough for a branch that follows at once, and for its other target.
        let near = self.reversed.len().saturating_sub(usize::from(u8::MAX / 2));
        match self.reversed[near..].iter().rposition(|i| *i == wanted) {
            Some(at) => near + at,
            None => self.push(wanted),
        }
    }

    fn load(&mut self, offset: u32, then: Label) -> Label {
        self.near(then, 0);
        self.push(Instruction { code: LD_W_ABS, jt: 0, jf: 0, k: offset })
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
            0x25 => at += taken(a > i.k),
            0x54 => a &= i.k,
            RET => return i.k,
            code => panic!("instruction {code:#x} isn't known here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(runs: &[(u32, Verdict)], number: u32, args: [u64; 6]) -> u32 {
        let verdict = runs.iter().rev().find(|(start, _)| *start <= number).map(|(_, v)| v).expect("a run starts at 0");
        fn decide(verdict: &Verdict, args: [u64; 6]) -> u32 {
            match verdict {
                Verdict::Allow => RET_ALLOW,
                Verdict::Errno(errno) => RET_ERRNO | u32::from(*errno),
                Verdict::Rules(rules, last) => rules
                    .iter()
                    .find(|rule| {
                        rule.checks.iter().all(|check| match *check {
                            Check::Is(i, value) => args[usize::from(i)] as u32 == value,
                            Check::Has(i, bits) => args[usize::from(i)] as u32 & bits != 0,
                        })
                    })
                    .map_or_else(|| decide(last, args), |rule| decide(&rule.verdict, args)),
            }
        }
        decide(verdict, args)
    }

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
        runs.push((700, Verdict::Errno(38)));
        let program = compile(&runs);
        for number in (0..1000).chain([0x3fff_ffff]) {
            for args in [[0; 6], [16, 0, 0, 0, 0, 0], [16, 0o4755, 1, 0, 0, 0], [1 << 32 | 16, 0, 0, 0, 0, 0]] {
                assert_eq!(interpret(&program, AUDIT_ARCH, number, args), reference(&runs, number, args), "number {number}, {args:x?}");
            }
        }
    }

    #[test]
    fn a_foreign_abi_ends_the_process() {
        let program = compile(&[(0, Verdict::Allow)]);
        assert_eq!(interpret(&program, AUDIT_ARCH, 39, [0; 6]), RET_ALLOW);
        assert_eq!(interpret(&program, 0x4000_0003, 39, [0; 6]), RET_KILL_PROCESS, "i386");
        if cfg!(target_arch = "x86_64") {
            assert_eq!(interpret(&program, AUDIT_ARCH, 0x4000_0000 | 39, [0; 6]), RET_KILL_PROCESS, "x32");
            assert_eq!(interpret(&program, AUDIT_ARCH, u32::MAX, [0; 6]), RET_KILL_PROCESS);
        }
    }
}
