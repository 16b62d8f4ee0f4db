//! How far a download is: a bar over the bytes of all files; without a terminal a line now and then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// The bytes of all files of one download.
#[derive(Clone)]
pub struct Bar {
    name: String,
    bar: ProgressBar,
    state: Arc<Mutex<State>>,
}

struct State {
    bytes_of_files: HashMap<String, u64>,
    last_line: Instant,
}

impl Bar {
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0);
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(name.to_owned());
        let state = State { bytes_of_files: HashMap::new(), last_line: Instant::now() };
        Self { name: name.to_owned(), bar, state: Arc::new(Mutex::new(state)) }
    }

    /// So many files and bytes are to be fetched.
    pub fn start(&self, files: usize, bytes: u64) {
        self.bar.set_length(bytes);
        if self.bar.is_hidden() && bytes > 0 {
            let (name, size) = (&self.name, base::console::size(bytes));
            base::say!("fetching `{name}`: {files} files, {size}");
        }
    }

    /// So many bytes of a file are here.
    pub fn file(&self, name: &str, bytes: u64) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        state.bytes_of_files.insert(name.to_owned(), bytes);
        let sum = state.bytes_of_files.values().sum();
        self.bar.set_position(sum);
        if self.bar.is_hidden() && state.last_line.elapsed() >= BETWEEN_LINES {
            state.last_line = Instant::now();
            let total = self.bar.length().unwrap_or(0);
            base::say!(
                "fetching `{}`: {} of {}",
                self.name,
                base::console::size(sum),
                base::console::size(total)
            );
        }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(DownloadEvent::Progress { files }) = event else {
            return;
        };
        for file in files {
            // A file that lay in the cache is told with 0 bytes.
            if file.bytes_completed > 0 {
                self.file(&file.filename, file.bytes_completed);
            }
        }
    }
}
