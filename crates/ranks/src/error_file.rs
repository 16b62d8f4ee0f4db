//! The file in which `torchrun` looks for why a rank failed (`torch.distributed.elastic`, `error_handler.py` of PyTorch 2.11).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use serde_json::json;

/// Writes `cause` where TORCHELASTIC_ERROR_FILE says; does nothing where it is not set. A file that cannot be written is told. `is_first`: no
/// other rank failed before.
pub fn write(cause: &str, is_first: bool) {
    if let Some(path) = env::var_os("TORCHELASTIC_ERROR_FILE").filter(|path| !path.is_empty())
        && let Err(error) = write_to(Path::new(&path), cause, is_first)
    {
        base::say!("warning: TORCHELASTIC_ERROR_FILE {}: {error}", Path::new(&path).display());
    }
}

fn write_to(path: &Path, cause: &str, is_first: bool) -> std::io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    // The earliest is shown as the root cause, in whole seconds; ranks that hear of a failure leave within the same one.
    let time = now - u64::from(is_first);
    let extra = json!({ "timestamp": time.to_string() });
    let content = json!({ "message": { "message": cause, "extraInfo": extra } });
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_torchruns_form() {
        let folder = tempfile::tempdir().unwrap();
        let time = |is_first| {
            let path = folder.path().join("0/error.json");
            write_to(&path, "no memory\nhint: less", is_first).unwrap();
            let text = fs::read_to_string(path).unwrap();
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read["message"]["message"], "no memory\nhint: less");
            read["message"]["extraInfo"]["timestamp"].as_str().unwrap().parse::<u64>().unwrap()
        };
        assert!(time(true) < time(false));
    }
}
