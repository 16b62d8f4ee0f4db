//! Where what may be lost is kept between runs.

use std::env;
use std::path::PathBuf;

/// `VLM_R1_CACHE`, else `vlm-r1` in the user's folder for caches. It need not exist.
pub fn cache_folder() -> PathBuf {
    let of = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("VLM_R1_CACHE")
        .or_else(|| of("XDG_CACHE_HOME").map(|folder| folder.join("vlm-r1")))
        .or_else(|| of("HOME").map(|folder| folder.join(".cache/vlm-r1")))
        .unwrap_or_else(|| env::temp_dir().join("vlm-r1"))
}

/// What fast paths were proven on the cards of this machine, by card and sizes.
pub fn fast_path_file() -> PathBuf {
    cache_folder().join("fast_paths.json")
}
