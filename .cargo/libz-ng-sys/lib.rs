//! zlib-ng's C interface, as far as flate2 calls it, from zlib-rs. Why it is
//! here stands in `Cargo.toml`.
//!
//! flate2 fills a `z_stream` whose allocators are bare function pointers, and
//! zlib-rs has them as `Option`s; the two layouts are the same (a null function
//! pointer is `None`), so the pointer is passed on as it is.
#![allow(non_camel_case_types, non_snake_case, clippy::missing_safety_doc)]

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};

pub use libz_rs_sys::{
    internal_state, Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH,
    Z_FULL_FLUSH, Z_MEM_ERROR, Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_PARTIAL_FLUSH, Z_STREAM_END,
    Z_STREAM_ERROR, Z_SYNC_FLUSH,
};

pub type uInt = c_uint;
pub type z_size = c_ulong;
pub type z_checksum = c_ulong;
pub type voidpf = *mut c_void;
pub type alloc_func = unsafe extern "C" fn(voidpf, uInt, uInt) -> voidpf;
pub type free_func = unsafe extern "C" fn(voidpf, voidpf);

/// zlib's `z_stream`.
#[repr(C)]
pub struct z_stream {
    pub next_in: *mut u8,
    pub avail_in: uInt,
    pub total_in: z_size,
    pub next_out: *mut u8,
    pub avail_out: uInt,
    pub total_out: z_size,
    pub msg: *mut c_char,
    pub state: *mut internal_state,
    pub zalloc: alloc_func,
    pub zfree: free_func,
    pub opaque: voidpf,
    pub data_type: c_int,
    pub adler: z_checksum,
    pub reserved: c_ulong,
}

const _: () = assert!(
    std::mem::size_of::<z_stream>() == std::mem::size_of::<libz_rs_sys::z_stream>()
        && std::mem::align_of::<z_stream>() == std::mem::align_of::<libz_rs_sys::z_stream>()
        && std::mem::offset_of!(z_stream, state) == std::mem::offset_of!(libz_rs_sys::z_stream, state)
        && std::mem::offset_of!(z_stream, adler) == std::mem::offset_of!(libz_rs_sys::z_stream, adler)
);

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {$(
        pub unsafe extern "C" fn $name(stream: *mut z_stream $(, $arg: $type)*) -> c_int {
            libz_rs_sys::$name(stream.cast() $(, $arg)*)
        }
    )*};
}

pass_on! {
    deflateInit2_(level: c_int, method: c_int, window: c_int, memory: c_int, strategy: c_int,
        version: *const c_char, size: c_int);
    deflate(flush: c_int);
    deflateEnd();
    deflateReset();
    deflateParams(level: c_int, strategy: c_int);
    deflateSetDictionary(dictionary: *const u8, length: uInt);
    inflateInit2_(window: c_int, version: *const c_char, size: c_int);
    inflate(flush: c_int);
    inflateEnd();
    inflateReset2(window: c_int);
    inflateSetDictionary(dictionary: *const u8, length: uInt);
}

/// The version that the two `Init` functions are given and compare.
pub unsafe extern "C" fn zlibVersion() -> *const c_char {
    libz_rs_sys::zlibVersion()
}
