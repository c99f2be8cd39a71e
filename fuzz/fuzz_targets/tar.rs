//! The reader of archives: whatever the bytes, it refuses them, or what it has read is
//! what it reads from our own writer's archive of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cofferdam::internals::layers::archive(bytes);
});
