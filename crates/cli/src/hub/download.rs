//! Fetching a model into the cache that Python's `huggingface_hub` shares. A cut download goes on where it stopped, here and in the
//! next call; what came is what the hub lists.
//!
//! `hf-hub` fetches small files and those of Xet storage, and lays out the cache. Large files over plain HTTP come by [`Part`], because it
//! begins each of them anew after a cut and takes an error page for the file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use hf_hub::progress::Progress;
use hf_hub::repository::{HFRepository, RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFError};
use sha2::{Digest, Sha256};

use super::progress::Bar;

/// Files that are fetched at once.
const AT_ONCE: usize = 4;
/// How often a download is taken up again that got no further.
const TRIES: u32 = 5;
/// The same where something came that is not the file.
const TRIES_OF_WRONG: u32 = 2;
/// After so long without a byte a connection counts as cut; `HF_HUB_DOWNLOAD_TIMEOUT` says otherwise.
const SILENCE_SECS: u64 = 30;
/// Where Xet storage is spoken to directly.
const HUB: &str = "https://huggingface.co";

/// Why a model did not come.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the hub or the connection said.
    #[error(transparent)]
    Hub(#[from] HFError),
    /// The cache cannot be written.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The cache's disk is too small.
    #[error(
        "{needed} are to be fetched into `{folder}`, where {free} are free\nhint: `HF_HOME` names another folder"
    )]
    Room { needed: String, folder: PathBuf, free: String },
    /// The connection ended in the middle of a file.
    #[error("the download of `{file}` was cut at {have} of {size}: {cause}")]
    Cut { file: String, have: String, size: String, cause: String },
    /// A file is not as the hub lists it.
    #[error("`{file}` came with {got} bytes, and the hub lists {expected}")]
    Size { file: String, got: u64, expected: u64 },
}

/// A file that the hub lists.
struct Listed {
    path: String,
    size: u64,
    /// The object id of its pointer; none of a small file, which lies in git itself.
    lfs: Option<String>,
    is_xet: bool,
}

/// A model on the hub.
pub struct Model {
    pub client: HFClient,
    pub owner: String,
    pub name: String,
    pub revision: Option<String>,
    /// Ends of the names of files that are wanted.
    pub ends: Vec<&'static str>,
    /// Folders of copies in other forms.
    pub other_forms: Vec<&'static str>,
}

impl Model {
    fn repository(&self) -> HFRepository<RepoTypeModel> {
        self.client.model(&self.owner, &self.name)
    }

    fn cache(&self) -> PathBuf {
        let folder = format!("models--{}--{}", self.owner, self.name);
        self.client.cache_dir().join(folder)
    }

    /// The folder of the model in the cache, as an earlier call left it.
    pub async fn cached(&self) -> Result<PathBuf, HFError> {
        let repository = self.repository();
        let download = repository.snapshot_download().maybe_revision(self.revision.clone());
        download.local_files_only(true).send().await
    }

    /// Fetches what the cache lacks.
    ///
    /// # Errors
    /// See [`Error`]. What came is kept.
    pub async fn fetch(&self, bar: &Bar) -> Result<PathBuf, Error> {
        let info = self.repository().info().maybe_revision(self.revision.clone()).send().await?;
        let commit =
            info.sha.ok_or_else(|| HFError::malformed_response("no `sha` of the revision"))?;
        let files = self.list(&commit).await?;
        let snapshot = self.cache().join("snapshots").join(&commit);
        let lacking: Vec<u64> = files
            .iter()
            .filter(|file| !snapshot.join(&file.path).exists())
            .map(|file| file.size)
            .collect();
        let (num_lacking, bytes) = (lacking.len(), lacking.iter().sum());
        self.check_room(bytes)?;
        bar.start(num_lacking, bytes);
        let (mut tries, mut came) = (0, self.bytes_under_way());
        loop {
            let error = match self.try_once(&commit, &files, bar).await {
                Ok(folder) => return Ok(folder),
                Err(error) if is_cut(&error) => error,
                Err(error) => return Err(error),
            };
            let now = self.bytes_under_way();
            tries = if now > came { 1 } else { tries + 1 };
            came = now;
            let is_wrong = matches!(error, Error::Size { .. });
            if tries >= if is_wrong { TRIES_OF_WRONG } else { TRIES } {
                return Err(error);
            }
            base::say!("warning: {error}; going on where it stopped");
            tokio::time::sleep(Duration::from_millis(500 << tries)).await;
        }
    }

    async fn list(&self, commit: &str) -> Result<Vec<Listed>, HFError> {
        let repository = self.repository();
        let entries = repository.list_tree().revision(commit.to_owned()).recursive(true).send()?;
        let entries: Vec<RepoTreeEntry> = entries.try_collect().await?;
        let listed = entries.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { oid, size, path, lfs, xet_hash, .. } => {
                Some(Listed { path, size, lfs: lfs.map(|_| oid), is_xet: xet_hash.is_some() })
            }
            RepoTreeEntry::Directory { .. } => None,
        });
        Ok(listed.filter(|file| self.is_wanted(&file.path)).collect())
    }

    fn is_wanted(&self, path: &str) -> bool {
        let is_other = self.other_forms.iter().any(|folder| path.starts_with(folder));
        !is_other && self.ends.iter().any(|end| path.ends_with(end))
    }

    fn check_room(&self, lacking_bytes: u64) -> Result<(), Error> {
        let needed = lacking_bytes.saturating_sub(self.bytes_under_way());
        match base::run_folder::free_bytes(&self.cache()) {
            Some(free) if free < needed => Err(Error::Room {
                needed: base::console::size(needed),
                folder: self.client.cache_dir().to_owned(),
                free: base::console::size(free),
            }),
            _ => Ok(()),
        }
    }

    async fn try_once(&self, commit: &str, files: &[Listed], bar: &Bar) -> Result<PathBuf, Error> {
        let snapshot = self.cache().join("snapshots").join(commit);
        let by_hub = self.client.endpoint().trim_end_matches('/') == HUB;
        let parts = files.iter().filter(|file| {
            file.lfs.is_some() && !(by_hub && file.is_xet) && !snapshot.join(&file.path).exists()
        });
        let parts = parts.map(|file| Part { model: self, commit, file, bar }.fetch());
        let blobs: Vec<Option<PathBuf>> =
            stream::iter(parts).buffer_unordered(AT_ONCE).try_collect().await?;
        let repository = self.repository();
        let download = repository.snapshot_download().maybe_revision(self.revision.clone());
        let ends = self.ends.iter().map(|end| format!("*{end}")).collect();
        let others = self.other_forms.iter().map(|folder| format!("{folder}**")).collect();
        let download = download.allow_patterns(ends).ignore_patterns(others);
        let folder = download.progress(Progress::new(bar.clone())).send().await?;
        bar.finish();
        check(&folder, files)?;
        remove_strays(&folder, files, &blobs);
        Ok(folder)
    }

    /// What lies in the cache and is not whole.
    fn bytes_under_way(&self) -> u64 {
        let blobs = fs::read_dir(self.cache().join("blobs")).into_iter().flatten().flatten();
        let parts =
            blobs.filter(|entry| entry.path().extension().is_some_and(|end| end == "incomplete"));
        parts.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
    }
}

/// Refuses files that are not as long as the hub lists them, and removes them, so that the next call fetches them again.
fn check(folder: &Path, files: &[Listed]) -> Result<(), Error> {
    for file in files {
        let path = folder.join(&file.path);
        let got = fs::metadata(&path).map_or(0, |found| found.len());
        if got != file.size {
            if let Ok(blob) = fs::canonicalize(&path) {
                let _ = fs::remove_file(blob);
            }
            let _ = fs::remove_file(&path);
            return Err(Error::Size { file: file.path.clone(), got, expected: file.size });
        }
    }
    Ok(())
}

/// Removes blobs that no file of the snapshot leads to: what came differed from what the hub promised, and was fetched again.
fn remove_strays(folder: &Path, files: &[Listed], blobs: &[Option<PathBuf>]) {
    let used: Vec<PathBuf> =
        files.iter().filter_map(|file| fs::canonicalize(folder.join(&file.path)).ok()).collect();
    for blob in blobs.iter().flatten() {
        if fs::canonicalize(blob).is_ok_and(|blob| !used.contains(&blob)) {
            let _ = fs::remove_file(blob);
        }
    }
}

/// Whether trying again may help.
fn is_cut(error: &Error) -> bool {
    match error {
        Error::Cut { .. } | Error::Size { .. } => true,
        Error::Hub(HFError::Request { source, .. }) => !source.is_connect() && !source.is_builder(),
        _ => false,
    }
}

/// One large file on its way.
struct Part<'a> {
    model: &'a Model,
    commit: &'a str,
    file: &'a Listed,
    bar: &'a Bar,
}

impl Part<'_> {
    /// Fetches what is missing of the file; gives the blob, named by its SHA-256 as the hub names large files. None where another
    /// process fetched it meanwhile.
    async fn fetch(self) -> Result<Option<PathBuf>, Error> {
        let blobs = self.model.cache().join("blobs");
        let oid = self.file.lfs.as_deref().unwrap_or_default();
        let path = blobs.join(format!("{oid}.incomplete"));
        let io = |source| Error::Io { path: path.clone(), source };
        fs::create_dir_all(&blobs).map_err(io)?;
        let mut sink = File::options().create(true).append(true).open(&path).map_err(io)?;
        if sink.try_lock().is_err() {
            base::say!("`{}` is being fetched by another process: waiting for it", self.file.path);
            let locked = tokio::task::spawn_blocking(move || sink.lock().map(|()| sink)).await;
            sink = locked.map_err(|e| io(std::io::Error::other(e)))?.map_err(io)?;
            if !path.exists() {
                return Ok(None);
            }
        }
        self.append(&mut sink, &path).await?;
        let digest = sha256(&path).map_err(io)?;
        let blob = blobs.join(digest);
        fs::rename(&path, &blob).map_err(io)?;
        Ok(Some(blob))
    }

    async fn append(&self, sink: &mut File, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut have = sink.metadata().map_err(io)?.len();
        if have > self.file.size {
            sink.set_len(0).map_err(io)?;
            have = 0;
        }
        let begun = have;
        if have == self.file.size {
            return Ok(());
        }
        let repository = self.model.repository();
        let request = repository
            .download_file_stream()
            .filename(self.file.path.clone())
            .revision(self.commit.to_owned());
        let range = (have > 0).then_some(have..self.file.size);
        let (_, mut bytes) = request.maybe_range(range).send().await?;
        loop {
            let chunk = match tokio::time::timeout(silence(), bytes.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(None) if have == self.file.size => return Ok(()),
                Ok(None) => return Err(self.cut(have, "the connection was closed".to_owned())),
                Ok(Some(Err(error))) => return Err(self.cut(have, super::cause(&error))),
                Err(_) => {
                    return Err(
                        self.cut(have, format!("nothing came for {} s", silence().as_secs()))
                    );
                }
            };
            if have + chunk.len() as u64 > self.file.size {
                // A server that does not know ranges sends all of it from the beginning.
                sink.set_len(0).map_err(io)?;
                let cause = if begun > 0 {
                    "the server sent more than was asked for"
                } else {
                    "the server sent more than it lists"
                };
                return Err(self.cut(0, cause.to_owned()));
            }
            sink.write_all(&chunk).map_err(io)?;
            have += chunk.len() as u64;
            self.bar.file(&self.file.path, have);
        }
    }

    fn cut(&self, have: u64, cause: String) -> Error {
        let (have, size) = (base::console::size(have), base::console::size(self.file.size));
        Error::Cut { file: self.file.path.clone(), have, size, cause }
    }
}

fn silence() -> Duration {
    let asked =
        std::env::var("HF_HUB_DOWNLOAD_TIMEOUT").ok().and_then(|secs| secs.trim().parse().ok());
    Duration::from_secs(asked.unwrap_or(SILENCE_SECS).max(1))
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
