//! Models by name: a folder, or a model on the Hugging Face hub, kept in its cache.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base::model_folder::{check_model_folder, is_adapter, missing_weights};
use hf_hub::{HFClient, HFError};

use download::Error;
use progress::Bar;

use crate::which_model::{Chosen, choose, hub_name};

mod download;
mod progress;

const WEIGHTS: &str = ".safetensors";
/// Ends of the names of files of a model folder that are read: first the weights.
const ENDS: [&str; 5] = [WEIGHTS, ".json", ".jinja", ".txt", ".model"];
/// Copies of the weights in other forms.
const OTHER_FORMS: [&str; 3] = ["onnx/", "original/", "openvino/"];

/// The folder of a model that [`choose`] finds; one of the hub is fetched, or lies in the cache.
///
/// # Errors
/// As [`choose`], and where the hub cannot be reached and the cache does not hold the model.
pub fn model_folder(name: &str, revision: Option<&str>) -> Result<PathBuf> {
    folder_with(name, revision, &ENDS)
}

/// As [`model_folder`], but weights need not be there and are not fetched.
///
/// # Errors
/// As [`model_folder`].
pub fn description_folder(name: &str, revision: Option<&str>) -> Result<PathBuf> {
    folder_with(name, revision, &ENDS[1..])
}

fn folder_with(name: &str, revision: Option<&str>, ends: &[&'static str]) -> Result<PathBuf> {
    match choose(name, revision)? {
        Chosen::Hub { name, revision } => of_hub(&name, revision, ends),
        Chosen::Folder(folder) => {
            // Of an adapter it may be meant for the model under it.
            let given = revision.filter(|revision| !["", "main"].contains(revision));
            if let Some(revision) = given.filter(|_| !is_adapter(&folder)) {
                base::say!(
                    "warning: no effect here: `--model_revision {revision}` (`{name}` is a folder, not a name on the hub)"
                );
            }
            if ends == ENDS {
                check_model_folder(&folder)?;
            }
            Ok(folder)
        }
    }
}

fn of_hub(name: &str, revision: Option<String>, ends: &[&'static str]) -> Result<PathBuf> {
    let Some((owner, model)) = hub_name(name) else {
        bail!("model `{name}`: expected a name like `Qwen/Qwen2.5-VL-3B-Instruct`");
    };
    let model = download::Model {
        client: HFClient::new().context("hub")?,
        owner: owner.to_owned(),
        name: model.to_owned(),
        revision,
        ends: ends.to_vec(),
        other_forms: OTHER_FORMS.to_vec(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(fetched(name, &model))
}

async fn fetched(name: &str, model: &download::Model) -> Result<PathBuf> {
    if let Some(variable) = offline_by() {
        let why = format!("{variable} forbids to fetch it");
        return in_cache(name, model, &why).await;
    }
    match model.fetch(&Bar::new(name)).await {
        Ok(folder) => Ok(folder),
        Err(Error::Hub(HFError::Request { source, .. })) if source.is_connect() => {
            let why = format!("the hub cannot be reached ({})", cause(&source));
            let folder = in_cache(name, model, &why).await?;
            base::say!("warning: {why}: `{name}` is taken from the cache as it is");
            Ok(folder)
        }
        Err(error) => Err(explained(name, model, error)),
    }
}

/// The folder in the cache, if all of it is there.
async fn in_cache(name: &str, model: &download::Model, why: &str) -> Result<PathBuf> {
    const HINT: &str = "hint: give the path of a downloaded model folder, or fetch it once where the hub can be reached";
    let at =
        model.revision.as_ref().map_or_else(String::new, |revision| format!(" at `{revision}`"));
    let Ok(folder) = model.cached().await else {
        bail!("model `{name}`{at} is no folder here and not in the cache, and {why}\n{HINT}");
    };
    let missing = missing_weights(&folder);
    if model.ends.contains(&WEIGHTS) && !missing.is_empty() {
        let files = missing.join("`, `");
        bail!("model `{name}` lies in the cache without `{files}`, and {why}\n{HINT}");
    }
    Ok(folder)
}

/// What went wrong, and what to do.
fn explained(name: &str, model: &download::Model, error: Error) -> anyhow::Error {
    let endpoint = model.client.endpoint().trim_end_matches('/');
    let revision = model.revision.as_deref().unwrap_or("main");
    let (what, hint) = match &error {
        Error::Hub(HFError::AuthRequired { context } | HFError::Forbidden { context }) => {
            let said = context.server_message.as_deref().unwrap_or("without a reason");
            let status = context.status.as_u16();
            (
                format!("{endpoint} refuses model `{name}` ({status}: {said})"),
                format!(
                    "a gated model: accept its terms at {endpoint}/{name}, then set HF_TOKEN to a token that may read it; \
                     a wrong name is answered in the same way"
                ),
            )
        }
        Error::Hub(HFError::RevisionNotFound { .. } | HFError::RepoNotFound { .. }) => (
            format!("model `{name}` is no folder here, and {endpoint} has none of that name with a revision `{revision}`"),
            "check the name and the revision (branch, tag or commit); a private model needs a token in HF_TOKEN".into(),
        ),
        Error::Hub(HFError::RateLimited { .. }) => (
            format!("{endpoint} allows no more requests for now"),
            "wait a few minutes; with a token in HF_TOKEN it allows more".into(),
        ),
        Error::Cut { .. } | Error::Size { .. } => {
            (error.to_string(), "what came is kept: the same command goes on there".into())
        }
        Error::Hub(_) => (
            format!("model `{name}` could not be fetched from {endpoint}: {}", cause(&error)),
            "check the name, the network and HF_ENDPOINT; a downloaded folder may be given instead".into(),
        ),
        Error::Room { .. } | Error::Io { .. } => return error.into(),
    };
    anyhow::anyhow!("{what}\nhint: {hint}")
}

/// How the hub is reached from here.
pub struct HubState {
    /// The hub, without a name and password in its address.
    pub endpoint: String,
    /// Folder of downloaded models.
    pub cache: PathBuf,
    /// Whether a token is sent; which one is nobody's business.
    pub has_token: bool,
    /// Seconds until it answered, or why it did not; `None` where a variable forbids to ask.
    pub answer: Option<Result<f64, String>>,
    /// That variable.
    pub offline_by: Option<&'static str>,
}

/// Asks the hub for one model's description, which is all that tells whether models can be fetched.
///
/// # Errors
/// Where the settings of the hub mean nothing.
pub fn reach(model: &str, limit: Duration) -> Result<HubState> {
    let client = HFClient::builder().retry_max_attempts(1).build().context("hub")?;
    let mut state = HubState {
        endpoint: without_password(client.endpoint()),
        cache: client.cache_dir().to_owned(),
        has_token: has_token(),
        answer: None,
        offline_by: offline_by(),
    };
    if state.offline_by.is_none() {
        let (owner, name) = hub_name(model).context("a model of the hub")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let start = Instant::now();
        let answer = runtime.block_on(async {
            let repository = client.model(owner, name);
            tokio::time::timeout(limit, repository.info().send()).await
        });
        // A name that takes long to resolve holds a thread of its own.
        runtime.shutdown_background();
        state.answer = Some(match answer {
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
            // It may keep this model from us, and is reached.
            Ok(
                Ok(_)
                | Err(
                    HFError::AuthRequired { .. }
                    | HFError::Forbidden { .. }
                    | HFError::RepoNotFound { .. }
                    | HFError::RevisionNotFound { .. }
                    | HFError::RateLimited { .. },
                ),
            ) => Ok(start.elapsed().as_secs_f64()),
            Ok(Err(error)) => Err(cause(&error)),
        });
    }
    Ok(state)
}

fn without_password(endpoint: &str) -> String {
    let Some((scheme, rest)) = endpoint.split_once("://") else {
        return endpoint.to_owned();
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{}", path.split('?').next().unwrap_or_default())
}

/// As `hf-hub` finds it.
fn has_token() -> bool {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return false;
    }
    let in_file =
        |path: &Path| std::fs::read_to_string(path).is_ok_and(|token| !token.trim().is_empty());
    variable("HF_TOKEN").is_some()
        || variable("HF_TOKEN_PATH").is_some_and(|path| in_file(Path::new(&path)))
        || in_file(&hf_hub::hf_home().join("token"))
}

/// The innermost cause of an error, which says most.
fn cause(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// The variable that forbids to ask the hub.
fn offline_by() -> Option<&'static str> {
    let is_on = |variable: &&str| {
        let value = std::env::var(variable).unwrap_or_default();
        ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str())
    };
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(is_on)
}
