#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| srpc_fuzz::server(input));
