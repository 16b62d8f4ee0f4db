//! Models by name: fetched from a hub (a small one on the loopback), cached as Hugging Face caches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::fake_hub::{COMMIT, Fault, Hub, MODEL, OLD_COMMIT, wait_until};
use crate::program::{CallResult, call_result, command};

/// Two shards with an index.
fn flat() -> PathBuf {
    testing::checkpoint("flat")
}

const SHARD: &str = "model-00002-of-00002.safetensors";

fn asking(model: &str, cache: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = command();
    command.args([
        "generate",
        "--model",
        model,
        "--prompt",
        "How many?",
        "--temperature",
        "0",
        "--max_new_tokens",
        "4",
    ]);
    command.args(["--device", "cpu"]).env("HF_HOME", cache);
    command.envs(settings.iter().copied());
    command
}

fn ask(model: &str, cache: &Path, settings: &[(&str, &str)]) -> CallResult {
    call_result(asking(model, cache, settings).output().unwrap())
}

fn local(cache: &Path) -> CallResult {
    ask(&flat().display().to_string(), cache, &[])
}

fn snapshot(cache: &Path) -> PathBuf {
    cache.join("hub/models--owner--tiny/snapshots").join(COMMIT)
}

/// Fails unless the cache holds what the hub has, and nothing half done.
fn check_cache(cache: &Path) {
    for entry in fs::read_dir(flat()).unwrap() {
        let name = entry.unwrap().file_name();
        let [got, expected] =
            [snapshot(cache), flat()].map(|folder| fs::read(folder.join(&name)).unwrap());
        assert!(got == expected, "{}", name.display());
    }
    let blobs = fs::read_dir(cache.join("hub/models--owner--tiny/blobs")).unwrap();
    assert_eq!(blobs.count(), fs::read_dir(flat()).unwrap().count());
}

fn part_bytes(cache: &Path) -> u64 {
    let blobs =
        fs::read_dir(cache.join("hub/models--owner--tiny/blobs")).into_iter().flatten().flatten();
    let parts =
        blobs.filter(|entry| entry.path().extension().is_some_and(|end| end == "incomplete"));
    parts.map(|entry| entry.metadata().unwrap().len()).sum()
}

#[test]
fn a_model_is_fetched_once_and_then_taken_from_the_cache() {
    let hub = Hub::start(&flat(), Fault::None, None);
    let cache = tempfile::tempdir().unwrap();
    let fetched = ask(MODEL, cache.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    assert_eq!(fetched.stderr.matches("fetching `owner/tiny`").count(), 1, "{}", fetched.stderr);
    check_cache(cache.path());
    let local = local(cache.path());
    assert_eq!(fetched.stdout, local.stdout);
    for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        let offline = ask(MODEL, cache.path(), &[(variable, "1")]);
        assert_eq!((offline.code, &offline.stdout), (Some(0), &local.stdout), "{}", offline.stderr);
    }
    let asked = hub.sent().len();
    let again = ask(MODEL, cache.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    assert_eq!((again.code, hub.sent().len()), (Some(0), asked), "{}", again.stderr);
    assert!(!again.stderr.contains("fetching"), "{}", again.stderr);

    let absent = ask("owner/absent", cache.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    assert_eq!(absent.code, Some(1));
    assert!(absent.stderr.contains("hint: check the name"), "{}", absent.stderr);

    // A port that nobody listens on: what the cache has is taken, and it is said.
    let unreachable = ask(MODEL, cache.path(), &[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    assert_eq!((unreachable.code, unreachable.stdout), (Some(0), local.stdout));
    assert!(
        unreachable.stderr.contains("warning: the hub cannot be reached"),
        "{}",
        unreachable.stderr
    );
}

#[test]
fn another_revision_is_named_by_its_flag_or_behind_the_name() {
    let hub = Hub::start(&flat(), Fault::None, None);
    let endpoint = ("HF_ENDPOINT", hub.endpoint.as_str());
    for (model, flags) in [("owner/tiny@v1", &[][..]), (MODEL, &["--model_revision", "v1"])] {
        let cache = tempfile::tempdir().unwrap();
        let ask = |model: &str, flags: &[&str], setting| {
            call_result(asking(model, cache.path(), &[setting]).args(flags).output().unwrap())
        };
        let fetched = ask(model, flags, endpoint);
        assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
        let reference = cache.path().join("hub/models--owner--tiny/refs/v1");
        assert_eq!(fs::read_to_string(reference).unwrap(), OLD_COMMIT);
        let offline = ("HF_HUB_OFFLINE", "1");
        assert_eq!(ask(model, flags, offline).code, Some(0));
        let other = ask("owner/tiny@v2", &[], offline);
        assert!(
            other.stderr.contains("`owner/tiny` at `v2` is no folder here and not in the cache"),
            "{}",
            other.stderr
        );
        let absent = ask("owner/tiny@v2", &[], endpoint);
        assert_eq!(absent.code, Some(1));
        assert!(absent.stderr.contains("with a revision `v2`"), "{}", absent.stderr);
    }
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_stopped() {
    let hub = Hub::start(&flat(), Fault::Cut { after: 10_000, times: 2 }, None);
    let cache = tempfile::tempdir().unwrap();
    let fetched = ask(MODEL, cache.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    assert!(fetched.stderr.contains("cut at 10.0 kB"), "{}", fetched.stderr);
    let of_shard: Vec<usize> =
        hub.sent().into_iter().filter(|(name, _)| name == SHARD).map(|(_, first)| first).collect();
    assert_eq!(of_shard, [0, 10_000, 20_000]);
    check_cache(cache.path());
    assert_eq!(fetched.stdout, local(cache.path()).stdout);
}

#[test]
fn a_download_that_was_killed_goes_on_in_the_next_call() {
    let hub = Hub::start(&flat(), Fault::Stall { after: 12_345 }, None);
    let cache = tempfile::tempdir().unwrap();
    let settings = [("HF_ENDPOINT", hub.endpoint.as_str())];
    let mut child = asking(MODEL, cache.path(), &settings).stderr(Stdio::null()).spawn().unwrap();
    wait_until("bytes of the shard", || part_bytes(cache.path()) >= 12_345);
    child.kill().unwrap();
    child.wait().unwrap();
    // Without a network the cache does not hold the model, and says what it lacks.
    let offline = ask(MODEL, cache.path(), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(offline.code, Some(1));
    assert!(offline.stderr.contains("not in the cache"), "{}", offline.stderr);
    let fetched = ask(MODEL, cache.path(), &settings);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    let sent = hub.sent();
    assert!(sent.contains(&(SHARD.to_owned(), 12_345)), "{sent:?}");
    check_cache(cache.path());
}

#[test]
fn a_connection_that_falls_silent_counts_as_cut() {
    let hub = Hub::start(&flat(), Fault::Stall { after: 5_000 }, None);
    let cache = tempfile::tempdir().unwrap();
    let fetched = ask(
        MODEL,
        cache.path(),
        &[("HF_ENDPOINT", &hub.endpoint), ("HF_HUB_DOWNLOAD_TIMEOUT", "1")],
    );
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    assert!(fetched.stderr.contains("nothing came for 1 s"), "{}", fetched.stderr);
    check_cache(cache.path());
}

#[test]
fn a_server_without_ranges_is_asked_for_all_of_it_again() {
    let hub = Hub::start(&flat(), Fault::NoRanges { after: 7_000 }, None);
    let cache = tempfile::tempdir().unwrap();
    let fetched = ask(MODEL, cache.path(), &[("HF_ENDPOINT", &hub.endpoint)]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    check_cache(cache.path());
}

#[test]
fn an_error_page_is_not_kept_for_the_file() {
    let hub = Hub::start(&flat(), Fault::ErrorPage, None);
    let cache = tempfile::tempdir().unwrap();
    let settings = [("HF_ENDPOINT", hub.endpoint.as_str())];
    let refused = ask(MODEL, cache.path(), &settings);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("`tokenizer.json` came with 17 bytes"), "{}", refused.stderr);
    assert!(!snapshot(cache.path()).join("tokenizer.json").exists());
    let whole = Hub::start(&flat(), Fault::None, None);
    let fetched = ask(MODEL, cache.path(), &[("HF_ENDPOINT", &whole.endpoint)]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    check_cache(cache.path());
}

#[test]
fn a_gated_model_says_what_opens_it_and_shows_the_token_to_the_hub_alone() {
    let hub = Hub::start(&flat(), Fault::None, Some("hf_right"));
    let cache = tempfile::tempdir().unwrap();
    for (token, status) in [(None, "401"), (Some("hf_wrong"), "403")] {
        let mut settings = vec![("HF_ENDPOINT", hub.endpoint.as_str())];
        settings.extend(token.map(|token| ("HF_TOKEN", token)));
        let refused = ask(MODEL, cache.path(), &settings);
        assert_eq!(refused.code, Some(1));
        let page = format!("accept its terms at {}/owner/tiny, then set HF_TOKEN", hub.endpoint);
        for text in [status, page.as_str()] {
            assert!(refused.stderr.contains(text), "{}", refused.stderr);
        }
    }
    let fetched =
        ask(MODEL, cache.path(), &[("HF_ENDPOINT", &hub.endpoint), ("HF_TOKEN", "hf_right")]);
    assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
    check_cache(cache.path());
    assert_eq!(hub.leaked(), 0);
}

#[test]
fn a_cache_without_its_weights_is_named_offline() {
    let hub = Hub::start(&flat(), Fault::None, None);
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(ask(MODEL, cache.path(), &[("HF_ENDPOINT", &hub.endpoint)]).code, Some(0));
    fs::remove_file(snapshot(cache.path()).join(SHARD)).unwrap();
    for settings in [[("HF_HUB_OFFLINE", "1")], [("HF_ENDPOINT", "http://127.0.0.1:9")]] {
        let refused = ask(MODEL, cache.path(), &settings);
        assert_eq!(refused.code, Some(1));
        assert!(
            refused.stderr.contains(&format!("in the cache without `{SHARD}`")),
            "{}",
            refused.stderr
        );
    }
}
