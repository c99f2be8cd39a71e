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
    let mut out = vec![load(OFFSET_ARCH), jump(JMP_JEQ, AUDIT_ARCH, 1, 0), give(RET_KILL_PROCESS), load(OFFSET_NR)];
    if cfg!(target_arch = "x86_64") {
        out.push(jump(JMP_JGE, 0x4000_0000, 0, 1));
        out.push(give(RET_KILL_PROCESS));
    }
    tree(runs, &mut out);
    out
}

fn tree(runs: &[(u32, Verdict)], out: &mut Vec<Instruction>) {
    if let [(_, verdict)] = runs {
        return leaf(verdict, out);
    }
    let (left, right) = runs.split_at(runs.len() / 2);
    let Some((start, _)) = right.first() else { return };
    let at = out.len();
    out.push(jump(JMP_JGE, *start, 0, 1));
    // A conditional jump reaches 255 instructions, this one all.
    out.push(Instruction { code: JMP_JA, jt: 0, jf: 0, k: 0 });
    tree(left, out);
    let distance = out.len() - at - 2;
    match u8::try_from(distance) {
        Ok(distance) => {
            out.remove(at + 1);
            out[at] = jump(JMP_JGE, *start, distance, 0);
        }
        Err(_) => out[at + 1].k = distance as u32,
    }
    tree(right, out);
}

fn leaf(verdict: &Verdict, out: &mut Vec<Instruction>) {
    match verdict {
        Verdict::Allow => out.push(give(RET_ALLOW)),
        Verdict::Errno(errno) => out.push(give(RET_ERRNO | u32::from(*errno))),
        Verdict::Rules(rules, last) => {
            for rule in rules {
                rule_body(rule, out);
            }
            leaf(last, out);
        }
    }
}

fn rule_body(rule: &Rule, out: &mut Vec<Instruction>) {
    // Each failed check jumps over the rest of the rule: 2 instructions for
    // every later check, and the verdict.
    let mut body = Vec::new();
    leaf(&rule.verdict, &mut body);
    for (i, check) in rule.checks.iter().enumerate() {
        let skip = ((rule.checks.len() - i - 1) * 2 + body.len()) as u8;
        let (code, argument, value) = match *check {
            Check::Is(argument, value) => (JMP_JEQ, argument, value),
            Check::Has(argument, bits) => (JMP_JSET, argument, bits),
        };
        // Arguments are 64-bit; both architectures are little-endian.
        out.push(load(OFFSET_ARGS + 8 * u32::from(argument)));
        out.push(jump(code, value, 0, skip));
    }
    out.append(&mut body);
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LD_W_ABS, jt: 0, jf: 0, k: offset }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn give(k: u32) -> Instruction {
    Instruction { code: RET, jt: 0, jf: 0, k }
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
