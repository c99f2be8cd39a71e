//! The JSON and archives of images: whatever the bytes, an image or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cofferdam::internals::image(bytes);
});
