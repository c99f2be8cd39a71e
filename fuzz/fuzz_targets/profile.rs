//! Seccomp profiles in JSON: whatever the bytes, they're refused, or become a filter that
//! the kernel takes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cofferdam::internals::profile(bytes);
});
