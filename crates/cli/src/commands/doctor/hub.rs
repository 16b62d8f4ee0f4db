//! The hub of models.

use std::time::Duration;

use super::section::Section;
use crate::hub::{HubState, reach};

/// One answer, from anywhere.
const LIMIT: Duration = Duration::from_secs(5);
/// A model that is asked for.
const MODEL: &str = "Qwen/Qwen2.5-VL-3B-Instruct";
/// Variables through which the hub may be asked; their values may hold a password.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Asks the hub, unless that is forbidden.
pub fn section() -> Section {
    let mut section = Section::new("hub");
    match reach(MODEL, LIMIT) {
        Ok(state) => tell(&mut section, &state),
        Err(error) => section.problem(
            base::console::describe(error.as_ref()),
            "HF_ENDPOINT is an address such as https://huggingface.co; unset, it is that",
        ),
    }
    section
}

fn tell(section: &mut Section, state: &HubState) {
    section.fact("endpoint", state.endpoint.clone());
    section.fact("cache", state.cache.display().to_string());
    section.fact("token", if state.has_token { "yes" } else { "no" });
    let set: Vec<&str> = PROXIES
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()))
        .collect();
    if !set.is_empty() {
        section.fact("proxy", format!("set by {}", set.join(", ")));
    }
    match (&state.answer, state.offline_by) {
        (_, Some(variable)) => section.fact("reached", format!("not tried: {variable} is set")),
        (Some(Ok(secs)), _) => section.fact("reached", format!("yes, in {secs:.2} s")),
        (Some(Err(why)), _) => {
            section.fact("reached", "no");
            section.problem(
                format!("{} cannot be reached: {why}", state.endpoint),
                "check the network, the proxy and HF_ENDPOINT; with models in the cache or in folders HF_HUB_OFFLINE=1 does without the hub",
            );
        }
        (None, None) => section.fact("reached", "not tried"),
    }
}
