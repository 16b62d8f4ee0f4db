use super::*;

/// A step of 4 groups of 4.
fn step(zero_spread: u64, cut_off: u64, zero: u64, reward: f64) -> Map<String, Value> {
    let metrics = json!({
        "reward": reward, "rewards/accuracy": reward, "rewards/accuracy/judge_asked": 7,
        "groups": 4, "zero_spread_groups": zero_spread,
        "completions": 16, "cut_off_completions": cut_off, "zero_reward_completions": zero,
    });
    metrics.as_object().unwrap().clone()
}

/// Names of the alerts that began (`+`) or ended (`-`), with their steps.
fn told(alerts: &[Alert]) -> Vec<String> {
    let sign = |alert: &Alert| if alert.is_over { '-' } else { '+' };
    alerts.iter().map(|alert| format!("{}{} {}", sign(alert), alert.name, alert.step)).collect()
}

fn feed(
    alerts: &mut Alerts,
    steps: std::ops::RangeInclusive<u64>,
    of: &Map<String, Value>,
) -> Vec<Alert> {
    steps.flat_map(|step| alerts.observe(step, of)).collect()
}

/// All alerts of a run of the same steps, to its end.
fn run(count: u64, of: &Map<String, Value>) -> Vec<Alert> {
    let mut alerts = Alerts::default();
    let mut all = feed(&mut alerts, 1..=count, of);
    all.extend(alerts.conclude(count));
    all
}

#[test]
fn each_rule_fires_at_its_share_and_not_below() {
    let healthy = step(1, 2, 3, 0.4);
    assert!(run(60, &healthy).is_empty());
    // 4 groups of 4 in each step; 3 of 4 are not 0.9.
    assert!(run(60, &step(3, 0, 3, 0.4)).is_empty());
    assert_eq!(told(&run(60, &step(4, 0, 3, 0.4))), ["+no_signal 20"]);
    assert!(run(60, &step(0, 7, 3, 0.4)).is_empty());
    assert_eq!(told(&run(60, &step(0, 8, 3, 0.4))), ["+many_cut_off 20"]);
    assert_eq!(told(&run(60, &step(0, 14, 3, 0.4))), ["+many_cut_off 20"]);
    assert_eq!(told(&run(60, &step(0, 15, 3, 0.4))), ["+all_cut_off 20"]);
    assert!(run(60, &step(0, 0, 15, 0.01)).is_empty());
    assert_eq!(told(&run(60, &step(0, 0, 16, 0.0))), ["+reward_zero 20"]);
}

#[test]
fn one_reward_that_is_not_0_is_enough_to_be_no_case_of_reward_zero() {
    let mut alerts = Alerts::default();
    assert!(alerts.observe(1, &step(0, 0, 15, 0.1)).is_empty());
    assert!(feed(&mut alerts, 2..=60, &step(0, 0, 16, 0.0)).is_empty());
    let mut alerts = Alerts::default();
    assert_eq!(feed(&mut alerts, 1..=30, &step(0, 0, 16, 0.0)).len(), 1);
    let over = alerts.observe(31, &step(0, 0, 15, 0.1));
    assert_eq!(told(&over), ["-reward_zero 31"]);
    assert!(alerts.marks().is_empty());
}

#[test]
fn an_alert_is_told_once_until_it_was_over() {
    let (silent, healthy) = (step(4, 0, 3, 0.4), step(0, 0, 3, 0.4));
    let mut alerts = Alerts::default();
    assert_eq!(told(&feed(&mut alerts, 1..=50, &silent)), ["+no_signal 20"]);
    // 80 groups are looked at: 16 % of others end it, 10 % do not.
    assert!(feed(&mut alerts, 51..=53, &healthy).is_empty());
    assert_eq!(alerts.marks(), ["no_signal"]);
    assert_eq!(told(&feed(&mut alerts, 54..=90, &healthy)), ["-no_signal 54"]);
    assert!(alerts.marks().is_empty());
    let again = feed(&mut alerts, 91..=130, &silent);
    assert_eq!(told(&again), ["+no_signal 108"]);
}

#[test]
fn cut_off_answers_grow_from_many_to_all() {
    let mut alerts = Alerts::default();
    assert_eq!(told(&feed(&mut alerts, 1..=20, &step(0, 10, 3, 0.4))), ["+many_cut_off 20"]);
    let more = told(&feed(&mut alerts, 21..=60, &step(0, 16, 3, 0.4)));
    assert_eq!(more, ["+all_cut_off 35", "-many_cut_off 35"]);
    assert_eq!(alerts.marks(), ["all_cut_off"]);
}

#[test]
fn short_runs_are_judged_at_their_end() {
    let mut alerts = Alerts::default();
    let silent = step(4, 16, 16, 0.0);
    assert!(feed(&mut alerts, 1..=5, &silent).is_empty());
    let end = alerts.conclude(5);
    assert_eq!(told(&end), ["+no_signal 5", "+all_cut_off 5", "+reward_zero 5"]);
    assert!(end[0].message.contains("20 of 20 (100.0 %) over 5 steps"), "{}", end[0].message);
    assert!(alerts.conclude(5).is_empty());
    assert!(run(5, &step(3, 7, 15, 0.1)).is_empty());
    // Nothing was sampled, as all rows were skipped; and SFT counts nothing.
    let mut nothing = step(0, 0, 0, 0.0);
    nothing.insert("groups".into(), json!(0));
    nothing.insert("completions".into(), json!(0));
    assert!(run(30, &nothing).is_empty());
    assert!(run(30, json!({"loss": 1.0}).as_object().unwrap()).is_empty());
}

#[test]
fn a_message_says_which_way_and_what_to_try() {
    let say = |of: Map<String, Value>| run(20, &of)[0].message.clone();
    let wrong = say(step(4, 0, 3, 0.02));
    assert!(wrong.contains("80 of 80 (100.0 %) over 20 steps"), "{wrong}");
    assert!(wrong.contains("all wrong, mean accuracy 0.0200\nhint: easier data"), "{wrong}");
    assert!(wrong.contains("rollouts/step_000020.jsonl --explain true"), "{wrong}");
    let right = say(step(4, 0, 0, 0.98));
    assert!(right.contains("all right, mean accuracy 0.9800\nhint: harder data"), "{right}");
    let mut alike = step(4, 0, 0, 1.0);
    alike.insert("rewards/format".into(), json!(0.0));
    let alike = say(alike);
    assert!(alike.contains("all alike, mean accuracy 1.0000, format 0.0000"), "{alike}");
    assert!(say(step(0, 16, 0, 0.5)).contains("--max_completion_length"));
    assert!(say(step(0, 0, 16, 0.0)).contains("--is_reward_customized_from_vlm_module"));
}

#[test]
fn a_run_that_goes_on_has_the_alerts_of_one_that_was_not_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let of = |n: u64| match n {
        0..30 => step(4, 16, 16, 0.0),
        30..60 => step(0, 0, 3, 0.5),
        _ => step(4, 0, 0, 1.0),
    };
    for stop in [1, 19, 20, 25, 30, 40, 70, 89] {
        let folder = dir.path().join(stop.to_string());
        let mut whole = Alerts { run: folder.clone(), ..Alerts::default() };
        let all: Vec<Alert> = (1..=90).flat_map(|n| whole.observe(n, &of(n))).collect();
        assert_eq!(all.len(), 9, "{:?}", told(&all));
        let mut run = RunFolder::open(&folder).unwrap();
        let mut alerts = Alerts::of_run(&run).unwrap();
        for n in 1..=stop + 3 {
            run.log_step(n, &of(n)).unwrap();
            for alert in alerts.observe(n, &of(n)) {
                run.log_alert(&alert.line()).unwrap();
            }
        }
        run.cut_back_to(stop).unwrap();
        let mut resumed = Alerts::of_run(&run).unwrap();
        for n in stop + 1..=90 {
            for alert in resumed.observe(n, &of(n)) {
                run.log_alert(&alert.line()).unwrap();
            }
        }
        let lines: Vec<Value> = all.iter().map(Alert::line).collect();
        let mut found = Vec::new();
        run.each_alert(|line| found.push(Value::Object(line))).unwrap();
        assert_eq!(found, lines, "stopped after {stop}");
        assert_eq!(resumed.summary(), whole.summary());
    }
}

#[test]
fn the_end_says_what_was_learnt() {
    let text = |count: u64, metric: &str| {
        let mut alerts = Alerts::default();
        for n in 1..=count {
            let metrics = json!({metric: n as f64 / 100.0});
            alerts.observe(n, metrics.as_object().unwrap());
        }
        alerts.summary().join("\n")
    };
    assert_eq!(
        text(100, "reward"),
        "reward 0.1050 over steps 1 to 20, 0.9050 over steps 81 to 100"
    );
    assert_eq!(text(5, "loss"), "loss 0.0150 over steps 1 to 2, 0.0450 over steps 4 to 5");
    assert_eq!(text(2, "reward"), "reward 0.0100 in step 1, 0.0200 in step 2");
    assert_eq!(text(1, "reward"), "reward 0.0100 in step 1");
    assert_eq!(text(0, "reward"), "");
}

/// None is no wrong answer.
#[test]
fn a_reward_that_gives_no_score_is_not_called_wrong() {
    let silent = |zero_spread, zero| {
        let mut step = step(zero_spread, 0, zero, 0.0);
        step.insert("rewards/accuracy".into(), Value::Null);
        step
    };
    let alerts = run(20, &silent(4, 16));
    assert_eq!(told(&alerts), ["+no_signal 20", "+reward_zero 20"]);
    for alert in &alerts {
        let text = &alert.message;
        assert!(text.contains("accuracy returned None for"), "{text}");
        assert!(!text.contains("wrong") && !text.contains("easier data"), "{text}");
    }
    // One of two: the other is what is all wrong.
    let mut half = silent(4, 16);
    half.insert("rewards/format".into(), json!(0.0));
    let text = &run(20, &half)[0].message;
    assert!(
        text.contains("all wrong, mean format 0.0000, accuracy None for every completion"),
        "{text}"
    );
    // One that gave a score once in the window is heard.
    let mut alerts = Alerts::default();
    feed(&mut alerts, 1..=1, &step(4, 0, 16, 0.0));
    let told = feed(&mut alerts, 2..=20, &silent(4, 16));
    assert!(told[0].message.contains("all wrong, mean accuracy 0.0000"), "{}", told[0].message);
}

#[test]
fn a_message_names_the_file_to_look_at_as_a_shell_takes_it() {
    for (folder, named) in [
        ("out/run-1", "--input out/run-1/rollouts/step_000020.jsonl --explain"),
        ("out/my run", "--input 'out/my run/rollouts/step_000020.jsonl' --explain"),
        ("it's", "--input 'it'\\''s/rollouts/step_000020.jsonl' --explain"),
    ] {
        let mut alerts = Alerts { run: folder.into(), ..Alerts::default() };
        let told = feed(&mut alerts, 1..=20, &step(4, 0, 16, 0.0));
        assert_eq!(told.len(), 2);
        for alert in told {
            assert!(alert.message.contains(named), "{}", alert.message);
        }
    }
}
