//! The configuration file: any bytes, as they may travel on a boot image.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = config::parse(text) {
        assert!(!error.to_string().is_empty());
    }
});
