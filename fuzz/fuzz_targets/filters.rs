//! Two compilers of filters against each other: ours and seccompiler's must decide the
//! same for every table, number and argument.
#![no_main]

use std::collections::BTreeMap;

use cofferdam::internals::{Instruction, Test, compile};
use libfuzzer_sys::fuzz_target;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

const EPERM: u32 = 0x0005_0001;
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: (TargetArch, u32) = (TargetArch::x86_64, 0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: (TargetArch, u32) = (TargetArch::aarch64, 0xc000_00b7);

/// What the kernel's interpreter would return.
fn interpret(program: &[Instruction], number: u32, arguments: [u64; 6]) -> u32 {
    let mut words = [0u32; 16];
    (words[0], words[1]) = (number, ARCHITECTURE.1);
    for (i, argument) in arguments.iter().enumerate() {
        (words[4 + 2 * i], words[5 + 2 * i]) = (*argument as u32, (argument >> 32) as u32);
    }
    let (mut a, mut at) = (0u32, 0usize);
    loop {
        let (code, jt, jf, k) = program[at];
        at += 1;
        let jump = |yes: bool| usize::from(if yes { jt } else { jf });
        match code {
            0x20 => a = words[k as usize / 4],
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x45 => at += jump(a & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    /// Values that meet each other often.
    fn value(&mut self) -> u64 {
        let (low, high) = (self.byte(), self.byte());
        match high >> 6 {
            0 => u64::from(low),
            1 => u64::from(low) << 32 | u64::from(high & 3),
            2 => u64::from(u32::MAX - u32::from(low)),
            _ => u64::MAX - u64::from(low),
        }
    }

    fn test(&mut self) -> Test {
        let (which, argument, value) = (self.byte() % 7, self.byte() % 6, self.value());
        match which {
            0 => Test::NotEqual(argument, value),
            1 => Test::Less(argument, value),
            2 => Test::LessOrEqual(argument, value),
            3 => Test::Equal(argument, value),
            4 => Test::GreaterOrEqual(argument, value),
            5 => Test::Greater(argument, value),
            _ => Test::Masked(argument, value, self.value()),
        }
    }
}

fn condition(test: &Test) -> SeccompCondition {
    let (op, argument, value) = match *test {
        Test::NotEqual(i, value) => (SeccompCmpOp::Ne, i, value),
        Test::Less(i, value) => (SeccompCmpOp::Lt, i, value),
        Test::LessOrEqual(i, value) => (SeccompCmpOp::Le, i, value),
        Test::Equal(i, value) => (SeccompCmpOp::Eq, i, value),
        Test::GreaterOrEqual(i, value) => (SeccompCmpOp::Ge, i, value),
        Test::Greater(i, value) => (SeccompCmpOp::Gt, i, value),
        Test::Masked(i, mask, value) => (SeccompCmpOp::MaskedEq(mask), i, value & mask),
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, value).expect("a condition")
}

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Bytes(bytes.iter());
    let mut table: BTreeMap<u32, Vec<Vec<Test>>> = BTreeMap::new();
    for _ in 0..bytes.byte() % 24 {
        let number = u32::from(bytes.byte()) * 2 + u32::from(bytes.byte() % 3);
        let alternatives = (0..bytes.byte() % 4).map(|_| (0..1 + bytes.byte() % 3).map(|_| bytes.test()).collect()).collect();
        table.insert(number, alternatives);
    }
    if table.is_empty() {
        return;
    }
    let rules = table.iter().map(|(number, alternatives)| {
        let rule = |tests: &Vec<Test>| SeccompRule::new(tests.iter().map(condition).collect()).expect("a rule");
        (i64::from(*number), alternatives.iter().map(rule).collect())
    });
    let filter = SeccompFilter::new(rules.collect(), SeccompAction::Errno(1), SeccompAction::Allow, ARCHITECTURE.0).expect("a filter");
    let theirs: BpfProgram = filter.try_into().expect("it compiles");
    let theirs: Vec<Instruction> = theirs.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
    let ours = compile(&table.iter().map(|(number, alternatives)| (*number, alternatives.clone())).collect::<Vec<_>>());
    let mut values: Vec<u64> = vec![0, u64::MAX];
    for test in table.values().flatten().flatten() {
        let (Test::NotEqual(_, v)
        | Test::Less(_, v)
        | Test::LessOrEqual(_, v)
        | Test::Equal(_, v)
        | Test::GreaterOrEqual(_, v)
        | Test::Greater(_, v)
        | Test::Masked(_, _, v)) = *test;
        values.extend([v, v.wrapping_add(1), v.wrapping_sub(1), v ^ 1 << 32]);
    }
    values.truncate(40);
    for number in (0..520).chain([0x3fff_ffff]) {
        if table.contains_key(&number) {
            for (i, value) in values.iter().enumerate() {
                let other = values[(i * 7 + usize::from(bytes.byte())) % values.len()];
                for arguments in [[*value; 6], [*value, other, *value, other, *value, other]] {
                    let (a, b) = (interpret(&ours, number, arguments), interpret(&theirs, number, arguments));
                    assert_eq!(a, b, "{number}, {arguments:x?}: {:?}", table[&number]);
                }
            }
        } else {
            assert_eq!(interpret(&ours, number, [0; 6]), EPERM);
            assert_eq!(interpret(&theirs, number, [0; 6]), EPERM);
        }
    }
});
