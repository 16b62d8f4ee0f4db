//! The file in which `torchrun` looks for why a rank failed (`torch.distributed.elastic`, `error_handler.py` of PyTorch 2.11).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use serde_json::json;

/// Writes `cause` where TORCHELASTIC_ERROR_FILE says; does nothing where it is not set. A file that cannot be written is told.
pub fn write(cause: &str) {
    if let Some(path) = env::var_os("TORCHELASTIC_ERROR_FILE").filter(|path| !path.is_empty())
        && let Err(error) = write_to(Path::new(&path), cause)
    {
        base::say!("warning: TORCHELASTIC_ERROR_FILE {}: {error}", Path::new(&path).display());
    }
}

fn write_to(path: &Path, cause: &str) -> std::io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let extra = json!({ "py_callstack": "", "timestamp": now.to_string() });
    let content = json!({ "message": { "message": cause, "extraInfo": extra } });
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_file_has_torchruns_form() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0/error.json");
        super::write_to(&path, "no memory\nhint: less").unwrap();
        let read: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read["message"]["message"], "no memory\nhint: less");
        let time: u64 =
            read["message"]["extraInfo"]["timestamp"].as_str().unwrap().parse().unwrap();
        assert!(time > 1_700_000_000);
    }
}
