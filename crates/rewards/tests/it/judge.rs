//! The language model as judge, against a server that plays one.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rewards::{
    ApiKey, JudgeOptions, PluginOptions, RewardError, RewardInput, RewardOptions, RewardSet,
    StepSize,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::http::{Request, ok, serve};
use crate::{generic_options, input};

fn set(name: &str, judge: JudgeOptions) -> Result<RewardSet, RewardError> {
    let plugins = PluginOptions { judge, ..PluginOptions::default() };
    let options = RewardOptions { plugins, ..generic_options() };
    RewardSet::build(&[name.to_owned()], None, &options)
}

fn judge(url: &str) -> JudgeOptions {
    JudgeOptions {
        model: Some("wise".to_owned()),
        api_base: Some(format!("{url}/v1/")),
        api_key: Some(ApiKey("secret".to_owned())),
        ..JudgeOptions::default()
    }
}

/// What a model would send with this reply.
fn reply(text: &str) -> Value {
    json!({"choices": [{"message": {"role": "assistant", "content": text}}]})
}

fn prompt(request: &Request) -> &str {
    request.body["messages"][0]["content"].as_str().expect("a text")
}

/// Right where the prompt holds `kitten`.
fn by_word(_: usize, request: &Request) -> crate::http::Reply {
    let right = prompt(request).contains("Answer: kitten");
    ok(&reply(if right { "1.0" } else { "<think>no</think>0.0" }))
}

fn score(set: &RewardSet, texts: &[&str]) -> Vec<Option<f64>> {
    try_score(set, texts).expect("scores")
}

fn try_score(set: &RewardSet, texts: &[&str]) -> Result<Vec<Option<f64>>, RewardError> {
    let columns = Map::new();
    let rows: Vec<RewardInput<'_>> = texts
        .iter()
        .map(|text| RewardInput {
            accu_reward_method: Some("llm"),
            problem: Some("Which animal?"),
            ..input(text, "<answer> young cat </answer>", &columns)
        })
        .collect();
    Ok(set.score(&rows)?.per_reward.remove(0))
}

fn counts(set: &RewardSet) -> Vec<u64> {
    set.counters().map(|(_, _, count)| count).collect()
}

#[test]
fn the_judge_sees_question_solution_and_last_answer_and_decides() {
    let (url, requests) = serve(by_word);
    let set = set("llm", judge(&url)).expect("a judge");
    let texts = ["<answer>dog</answer> <answer> kitten </answer>", "dog", "dog", "dog"];
    let wanted = [1.0, 0.0, 0.0, 0.0].map(Some);
    assert_eq!(score(&set, &texts), wanted);
    let asked: Vec<Request> = requests.try_iter().collect();
    assert_eq!(asked.len(), 2, "equal answers are judged once");
    for request in &asked {
        assert_eq!(request.path, "/v1/chat/completions");
        assert_eq!(request.authorization.as_deref(), Some("Bearer secret"));
        assert_eq!(request.body["model"], "wise");
        assert_eq!(request.body["temperature"], 0);
        assert!(prompt(request).contains("Question: Which animal?\nReference: young cat\n"));
    }
    let counters: Vec<_> = set.counters().collect();
    let expected = [("judge_asked", 2), ("judge_cached", 0), ("judge_failed", 0)];
    assert_eq!(counters, expected.map(|(name, count)| ("llm", name, count)));
    for (reward, name, _) in counters {
        let metric = format!("rewards/{reward}/{name}");
        // One that is not declared would be taken for the mean of a reward of that name.
        assert_eq!(base::metrics::reward_of(&metric), None, "not in base::metrics: {metric}");
    }
}

#[test]
fn as_a_method_it_judges_its_rows_and_rules_score_the_others() {
    let (url, requests) = serve(by_word);
    let judged = set("accuracy", judge(&url)).expect("a judge");
    let columns = Map::new();
    let row = |text, method| RewardInput {
        accu_reward_method: Some(method),
        ..input(text, "kitty", &columns)
    };
    let rows = [
        row("kitten", "all_match"),
        row("kitten", "llm"),
        row("Kitty.", "all_match"),
        row("x", "llm"),
    ];
    let scores = judged.score(&rows).expect("scores");
    assert_eq!(scores.total, [0.0, 1.0, 1.0, 0.0]);
    assert_eq!(requests.try_iter().count(), 2);
    // An error still names the row of the batch.
    let bad = [rows[1], row("x", "no_such")];
    assert_eq!(judged.score(&bad).expect_err("no such method").row(), Some(1));
    assert_eq!(judged.check(0, "x", Some("llm")), Ok(()));
}

#[test]
fn replies_are_kept_on_disk_by_content() {
    let folder = TempDir::new().expect("a folder");
    let (url, requests) = serve(by_word);
    let kept = |model: &str| {
        let options = JudgeOptions {
            model: Some(model.to_owned()),
            cache: Some(folder.path().join("replies")),
            ..judge(&url)
        };
        set("llm", options).expect("a judge")
    };
    assert_eq!(score(&kept("wise"), &["kitten", "dog"]), [1.0, 0.0].map(Some));
    assert_eq!(requests.try_iter().count(), 2);
    let again = kept("wise");
    assert_eq!(score(&again, &["dog", "kitten", "cow"]), [0.0, 1.0, 0.0].map(Some));
    assert_eq!(requests.try_iter().count(), 1, "only the new answer");
    assert_eq!(counts(&again), [1, 2, 0]);
    score(&kept("wiser"), &["dog"]);
    assert_eq!(requests.try_iter().count(), 1, "another judge");
}

#[test]
fn failures_are_counted_scored_by_equality_and_not_kept() {
    let folder = TempDir::new().expect("a folder");
    let (url, _requests) = serve(|_, request| match prompt(request) {
        text if text.contains("Answer: chatty") => ok(&reply("Certainly! 1.0")),
        text if text.contains("Answer: broken") => Some(("200 OK", "", "{".to_owned())),
        text if text.contains("Answer: cow") => ok(&reply("0.5")),
        _ => Some(("401 Unauthorized", "", "who are you".to_owned())),
    });
    let options =
        JudgeOptions { cache: Some(folder.path().to_owned()), max_failed: 1.0, ..judge(&url) };
    let set = set("llm", options).expect("a judge");
    let texts = ["chatty", "broken", "<answer>young cat</answer>", "cow"];
    assert_eq!(score(&set, &texts), [0.0, 0.0, 1.0, 0.5].map(Some));
    assert_eq!(counts(&set), [4, 0, 3]);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn requests_at_a_time_are_bounded() {
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (seen_now, seen_most) = (Arc::clone(&now), Arc::clone(&most));
    let (url, _requests) = serve(move |_, _| {
        let at_once = seen_now.fetch_add(1, Ordering::SeqCst) + 1;
        seen_most.fetch_max(at_once, Ordering::SeqCst);
        // The first three wait for each other; a fourth would come while they stay.
        let end = Instant::now() + Duration::from_secs(60);
        while seen_most.load(Ordering::SeqCst) < 3 && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(20));
        seen_now.fetch_sub(1, Ordering::SeqCst);
        ok(&reply("1"))
    });
    let options = JudgeOptions { concurrency: 3, ..judge(&url) };
    let texts: Vec<String> = (0..12).map(|i| i.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    score(&set("llm", options).expect("a judge"), &texts);
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[test]
fn prompt_and_images_are_the_users() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("prompt.txt");
    fs::write(&file, "Is {answer} like {solution}?").expect("written");
    let image = folder.path().join("a.PNG");
    fs::write(&image, b"not looked into").expect("written");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let (url, _requests) = serve(move |_, request| {
        let content = request.body["messages"][0]["content"].clone();
        sink.lock().expect("not poisoned").push(content);
        ok(&reply("1"))
    });
    let options = JudgeOptions { prompt: Some(file.clone()), images: true, ..judge(&url) };
    let judged = set("llm", options.clone()).expect("a judge");
    let columns = Map::new();
    let images = [image];
    let row = RewardInput { images: &images, ..input("{solution}", "S", &columns) };
    let scores = judged.score(&[row]).expect("scores");
    assert_eq!(scores.total, [1.0]);
    let url = "data:image/png;base64,bm90IGxvb2tlZCBpbnRv";
    let expected = json!([
        {"type": "text", "text": "Is {solution} like S?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]);
    assert_eq!(*seen.lock().expect("not poisoned"), [expected]);
    // An image that is gone is a failure like any other.
    let gone = [PathBuf::from("gone.png")];
    judged.score(&[RewardInput { images: &gone, ..row }]).expect("by equality");
    assert_eq!(counts(&judged), [1, 0, 1]);

    fs::write(&file, "Is {answer} good?").expect("written");
    let error = set("llm", options).err().expect("a bad prompt");
    assert!(error.to_string().ends_with("no `{solution}` in the judge's prompt"), "{error}");
}

#[test]
fn without_a_model_nothing_is_judged_in_silence() {
    assert_eq!(set("llm", JudgeOptions::default()).err(), Some(RewardError::NoJudge));
    let rules = set("accuracy", JudgeOptions::default()).expect("rules need no judge");
    assert_eq!(rules.check(0, "x", Some("llm")), Err(RewardError::NoJudge));
    let columns = Map::new();
    let row = RewardInput { accu_reward_method: Some("llm"), ..input("a", "a", &columns) };
    assert_eq!(rules.score(&[row]), Err(RewardError::NoJudge));
    assert!(!format!("{:?}", judge("http://x")).contains("secret"));
}

#[test]
fn an_explanation_says_what_the_judge_said_or_why_it_said_nothing() {
    let columns = Map::new();
    let row = RewardInput {
        accu_reward_method: Some("llm"),
        ..input("<answer> dog </answer>", "<answer>dog</answer>", &columns)
    };
    for name in ["llm", "accuracy"] {
        let (url, _requests) = serve(|index, _| ok(&reply(["0.25", "perhaps"][index.min(1)])));
        let set = set(name, judge(&url)).expect("a judge");
        let explained = || {
            let explanations = set.explain(&row).expect("a good row");
            let got = explanations.into_iter().next().flatten();
            got.expect("an explanation")
        };
        let said = explained();
        assert_eq!(said.reason, "`wise` says 0.25");
        assert_eq!(said.score, Some(0.25));
        assert_eq!(said.answer.as_deref(), Some("dog"));
        let silent = explained();
        let expected = "the judge said `perhaps`, expected a number from 0 to 1; scored by equality of the texts";
        assert_eq!(silent.reason, expected);
        assert_eq!(silent.score, Some(1.0), "the texts are equal");
    }
}

#[test]
fn a_judge_that_never_answers_ends_the_run_with_the_cause() {
    let replies: [fn() -> crate::http::Reply; 6] = [
        || Some(("401 Unauthorized", "", "who are you".to_owned())),
        || Some(("403 Forbidden", "", String::new())),
        || Some(("404 Not Found", "", "no such model".to_owned())),
        || ok(&json!({"message": "a web page"})),
        || ok(&reply("Certainly! It is right.")),
        || Some(("200 OK", "", "<html>".to_owned())),
    ];
    for bad in replies {
        for name in ["llm", "accuracy"] {
            let (url, requests) = serve(move |_, _| bad());
            let set = set(name, judge(&url)).expect("a judge");
            let error = try_score(&set, &["a", "b"]).expect_err("no verdict");
            let text = error.to_string();
            assert!(text.starts_with("reward `llm`: no verdict yet, 2 of 2 failed: "), "{text}");
            assert!(text.contains("OPENAI_API_BASE") && text.contains(&url), "{text}");
            assert!(!text.contains("secret"), "{text}");
            assert_eq!(requests.try_iter().count(), 2, "not tried again: {text}");
        }
    }
    // Nobody listens there.
    let set = set("llm", judge("http://127.0.0.1:9")).expect("a judge");
    let text = try_score(&set, &["a"]).expect_err("no judge").to_string();
    assert!(text.contains("no verdict yet"), "{text}");
}

/// Each batch is one answer, as in training where others are still sampled.
#[test]
fn in_a_stream_a_refusal_ends_at_once_and_a_bad_reply_waits_for_the_others() {
    let stream = |url: &str| {
        let set = set("llm", judge(url)).expect("a judge");
        let columns = Map::new();
        let texts = ["chatty", "kitten", "dog"];
        let size = StepSize { rows: 3, group: 3 };
        let row = |index: usize| input(texts[index], "young cat", &columns);
        let scored = set.score_while(size, row, |queue| {
            for index in 0..3 {
                queue.push(index);
                let end = Instant::now() + Duration::from_secs(60);
                while counts(&set)[0] <= index as u64 && !queue.has_failed() && Instant::now() < end
                {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            Ok::<_, RewardError>(())
        });
        scored.map(|(_, scores)| scores.total)
    };
    let (url, _requests) = serve(|index, request| match index {
        0 => ok(&reply("Certainly!")),
        _ => by_word(index, request),
    });
    assert_eq!(stream(&url), Ok(vec![0.0, 1.0, 0.0]));
    let (url, requests) = serve(|_, _| Some(("401 Unauthorized", "", String::new())));
    assert!(matches!(stream(&url), Err(RewardError::JudgeFailed { .. })));
    assert_eq!(requests.try_iter().count(), 1, "the first is enough");
}

#[test]
fn too_many_failures_are_an_error_also_later() {
    let texts: Vec<String> = (0..20).map(|i| format!("{i}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let run = |max_failed, bad: usize| {
        let (url, _requests) = serve(move |_, request| {
            let text = prompt(request);
            let is_bad = (0..bad).any(|i| text.contains(&format!("Answer: {i}\n")));
            match is_bad {
                true => Some(("400 Bad Request", "", "too long".to_owned())),
                false => by_word(0, request),
            }
        });
        let options = JudgeOptions { max_failed, ..judge(&url) };
        let set = set("llm", options).expect("a judge");
        score(&set, &["kitten"]);
        try_score(&set, &texts).map(drop)
    };
    assert_eq!(run(0.1, 2), Ok(()));
    let text = run(0.1, 3).expect_err("3 of 21").to_string();
    assert!(
        text.contains(
            "3 of 21 verdicts failed, more than --judge_max_failed 0.1; the last: status 400"
        ),
        "{text}"
    );
    assert_eq!(run(0.5, 3), Ok(()));
    assert!(run(0.0, 1).is_err());
    assert_eq!(run(1.0, 20), Ok(()));
    let options = |max_failed| JudgeOptions { max_failed, ..judge("http://x") };
    for bad in [-0.1, 1.5, f64::NAN] {
        let error = set("llm", options(bad)).err();
        assert!(matches!(error, Some(RewardError::PluginOption { .. })), "{error:?}");
    }
}
