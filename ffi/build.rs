//! Link arguments that apps need and rustc does not set: a name in the library, and 16 KB pages for Android 15.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (os, width) = (variable("CARGO_CFG_TARGET_OS"), variable("CARGO_CFG_TARGET_POINTER_WIDTH"));
    match os.as_str() {
        "android" | "linux" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libedgeweld_ffi.so");
            // Also on Linux, so that what is checked there is what is shipped.
            if width == "64" {
                println!("cargo:rustc-cdylib-link-arg=-Wl,-z,max-page-size=16384");
            }
        }
        "macos" => println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libedgeweld_ffi.dylib"),
        _ => {}
    }
}
