//! init's decoder of plans: whatever the bytes, it refuses them or stays inside them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cofferdam::internals::plan(bytes);
});
