//! A language model as judge, over an OpenAI-compatible endpoint: the reward `llm` and the accuracy
//! method of the same name.
//!
//! As in VLM-R1, the judge is asked for 1.0 or 0.0, and where it fails the texts are compared; here
//! each such row is counted and logged, and too many of them are an error ([`Tally`]).

mod cache;
mod prompt;
mod rewards;
mod tally;
mod verdict;

use std::cmp::Ordering::{Equal, Greater, Less};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use serde_json::{Value, json};

use super::PluginOptions;
use super::client::{self, Client};
use super::keys::ApiKey;
use super::protocol::Refusal;
use crate::error::RewardError;
use crate::explain::Explanation;
use crate::registry::RewardInput;
use cache::Cache;
use prompt::{data_url, filled, template, texts};
pub(super) use rewards::JudgeReward;
pub(crate) use rewards::JudgedAccuracy;
use tally::Tally;
use verdict::{score_of, verdict};

/// Failures of a run that are named.
const MAX_NAMED: u64 = 20;
/// Name of the reward and of the accuracy method.
pub(crate) const NAME: &str = "llm";

/// Longest answer that is read, bytes: a verdict, and the thinking before it.
const MAX_ANSWER_BYTES: u64 = 4 << 20;

const DEFAULT_BASE: &str = "https://api.openai.com/v1";

/// Who judges and how.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgeOptions {
    /// Name of the model at the endpoint; without it nothing can be judged.
    pub model: Option<String>,
    /// File of the prompt with `{answer}`, `{solution}` and, if wanted, `{question}` in it.
    pub prompt: Option<PathBuf>,
    /// Whether the images of a row are shown to the judge.
    pub images: bool,
    /// Requests at a time.
    pub concurrency: usize,
    /// Share of a step's requests that may fail; at 1 every failure is scored by equality.
    pub max_failed: f64,
    /// Folder that caches replies; without it, nothing is cached.
    pub cache: Option<PathBuf>,
    /// Address up to `/chat/completions`; without it `OPENAI_API_BASE`, else that of OpenAI.
    pub api_base: Option<String>,
    /// Without it `OPENAI_API_KEY`, else none is sent.
    pub api_key: Option<ApiKey>,
}

impl Default for JudgeOptions {
    fn default() -> Self {
        Self {
            model: None,
            prompt: None,
            images: false,
            concurrency: 8,
            max_failed: 0.1,
            cache: None,
            api_base: None,
            api_key: None,
        }
    }
}

/// Asks the model, caches its replies, and counts failures.
struct Judge {
    client: Client,
    url: String,
    model: String,
    template: String,
    images: bool,
    concurrency: usize,
    cache: Option<Cache>,
    tally: Mutex<Tally>,
    asked: AtomicU64,
    cached: AtomicU64,
    failed: AtomicU64,
}

impl Judge {
    fn new(model: &str, options: &PluginOptions) -> Result<Self, RewardError> {
        let judge = &options.judge;
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let base = judge.api_base.clone().or(variable("OPENAI_API_BASE"));
        let base = base.unwrap_or_else(|| DEFAULT_BASE.to_owned());
        let key = judge.api_key.as_ref().map(|key| key.0.clone());
        let key = key.or(variable("OPENAI_API_KEY"));
        let url = format!("{}/chat/completions", base.trim_end_matches('/'));
        client::host(&url)
            .map_err(|reason| RewardError::JudgeAddress { url: client::shown(&url), reason })?;
        if judge.concurrency == 0 {
            return Err(RewardError::PluginOption {
                option: "judge_concurrency",
                got: "0".to_owned(),
                expected: "at least 1",
            });
        }
        if !(0.0..=1.0).contains(&judge.max_failed) {
            return Err(RewardError::PluginOption {
                option: "judge_max_failed",
                got: judge.max_failed.to_string(),
                expected: "0 to 1",
            });
        }
        Ok(Self {
            client: Client::new(NAME, url.clone(), key.as_deref(), MAX_ANSWER_BYTES, options)?,
            url,
            model: model.to_owned(),
            template: template(judge.prompt.as_deref())?,
            images: judge.images,
            concurrency: judge.concurrency,
            cache: judge.cache.as_deref().map(Cache::new),
            tally: Mutex::new(Tally::new(judge.max_failed)),
            asked: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// 0 to 1 for each row, by the judge or, where it fails, by equality.
    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<f64>, RewardError> {
        let mut scores = Vec::with_capacity(rows.len());
        let mut rest = rows;
        while !rest.is_empty() {
            // One that cannot be had is not asked for every row before that is known.
            let count = match self.with_tally(|tally| tally.has_answered()) {
                true => rest.len(),
                false => self.concurrency.min(rest.len()),
            };
            let (now, later) = rest.split_at(count);
            scores.extend(self.score_part(now)?);
            rest = later;
        }
        Ok(scores)
    }

    fn score_part(&self, rows: &[RewardInput<'_>]) -> Result<Vec<f64>, RewardError> {
        let verdicts = self.verdicts(rows);
        self.with_tally(|tally| verdicts.iter().for_each(|verdict| tally.note(verdict)));
        // An unreachable judge is not waited for until the step ends.
        self.with_tally(|tally| tally.check_first()).map_err(|failures| self.failed(failures))?;
        let scores = rows.iter().zip(verdicts).map(|(row, verdict)| {
            verdict.unwrap_or_else(|reason| self.without_judge(row, &reason))
        });
        Ok(scores.collect())
    }

    /// Looks at what failed in a step.
    fn conclude(&self) -> Result<(), RewardError> {
        self.with_tally(Tally::check).map_err(|failures| self.failed(failures))
    }

    fn with_tally<T>(&self, act: impl FnOnce(&mut Tally) -> T) -> T {
        act(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn failed(&self, failures: String) -> RewardError {
        RewardError::JudgeFailed {
            failures,
            model: self.model.clone(),
            url: client::shown(&self.url),
        }
    }

    /// Sends the request, unless the reply is in the cache.
    fn explain(&self, row: &RewardInput<'_>) -> Explanation {
        let verdict = self.verdicts(std::slice::from_ref(row)).pop();
        let verdict = verdict.expect("one verdict for each row");
        let reason = match &verdict {
            Ok(score) => format!("`{}` says {score}", self.model),
            Err(reason) => format!("{reason}; scored by equality of the texts"),
        };
        let (answer, solution) = texts(row);
        Explanation {
            score: Some(verdict.unwrap_or_else(|reason| self.without_judge(row, &reason))),
            answer: Some(answer.to_owned()),
            truth: Some(solution.to_owned()),
            reason,
            ..Explanation::default()
        }
    }

    /// The verdict on each row, or why there is none.
    fn verdicts(&self, rows: &[RewardInput<'_>]) -> Vec<Result<f64, String>> {
        let requests: Vec<_> = rows.iter().map(|row| self.request(row)).collect();
        // Groups repeat completions: each text is sent once.
        let mut index_of: HashMap<&str, usize> = HashMap::new();
        let mut distinct: Vec<&str> = Vec::new();
        for request in requests.iter().flatten() {
            index_of.entry(request).or_insert_with(|| {
                distinct.push(request);
                distinct.len() - 1
            });
        }
        let replies = self.ask_all(&distinct);
        let reply = |request: &Result<String, String>| match request {
            Ok(request) => replies[index_of[request.as_str()]].clone(),
            Err(reason) => Err(reason.clone()),
        };
        requests.iter().map(reply).collect()
    }

    fn without_judge(&self, row: &RewardInput<'_>, reason: &str) -> f64 {
        let before = self.failed.fetch_add(1, Ordering::Relaxed);
        let sample = row.sample.unwrap_or("a row");
        match before.cmp(&MAX_NAMED) {
            Less => {
                base::say!("reward `{NAME}`, {sample}: {reason}; scored by equality of the texts")
            }
            Equal => base::say!("reward `{NAME}`: further failures are counted, and not named"),
            Greater => {}
        }
        let (answer, solution) = texts(row);
        f64::from(answer == solution)
    }

    fn request(&self, row: &RewardInput<'_>) -> Result<String, String> {
        let (answer, solution) = texts(row);
        let question = row.problem.unwrap_or_default();
        let fields = [("{question}", question), ("{solution}", solution), ("{answer}", answer)];
        let prompt = filled(&self.template, &fields);
        let mut content = Value::String(prompt.clone());
        if self.images && !row.images.is_empty() {
            let mut parts = vec![json!({"type": "text", "text": prompt})];
            for image in row.images {
                parts.push(json!({"type": "image_url", "image_url": {"url": data_url(image)?}}));
            }
            content = Value::Array(parts);
        }
        let messages = [json!({"role": "user", "content": content})];
        Ok(json!({"model": self.model, "temperature": 0, "messages": messages}).to_string())
    }

    fn ask_all(&self, requests: &[&str]) -> Vec<Result<f64, String>> {
        let replies: Vec<OnceLock<_>> = requests.iter().map(|_| OnceLock::new()).collect();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..self.concurrency.min(requests.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(request) = requests.get(index) else {
                            break;
                        };
                        replies[index].get_or_init(|| self.ask(request));
                    }
                });
            }
        });
        replies
            .into_iter()
            .map(|reply| reply.into_inner().expect("every index was taken by a thread"))
            .collect()
    }

    fn ask(&self, request: &str) -> Result<f64, String> {
        let key = [&self.url, request];
        if let Some(reply) = self.cache.as_ref().and_then(|cache| cache.get(&key))
            && let Ok(score) = score_of(&reply)
        {
            self.cached.fetch_add(1, Ordering::Relaxed);
            return Ok(score);
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let read = |body: &str| {
            self.with_tally(Tally::note_reply);
            verdict(body).map_err(Refusal::whole)
        };
        let (score, reply) = self.client.post(request, read).map_err(|refusal| refusal.reason)?;
        self.with_tally(Tally::note_answer);
        if let Some(cache) = &self.cache {
            cache.put(&key, &reply);
        }
        Ok(score)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        [
            ("judge_asked", &self.asked),
            ("judge_cached", &self.cached),
            ("judge_failed", &self.failed),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
        .into()
    }
}
