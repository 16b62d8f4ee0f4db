//! Ranks that agree, and what the others get where one does not go on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base::metrics::{Command, ReduceError, reduce};
use base::world::{Local, Threads, World, WorldError};
use serde_json::{Map, Value, json};

/// No test waits as long where nothing is wrong.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

fn on<R: Send>(size: usize, work: impl Fn(Threads) -> R + Sync) -> Vec<R> {
    Threads::run(size, LONG, work)
}

#[test]
fn sums_are_in_the_order_of_ranks_whoever_comes_first() {
    // In this order 1 is lost beside 1e16; in others it is not.
    let numbers = [1e16, 1.0, -1e16];
    for late in 0..6 {
        let sums = on(3, |world| {
            if late < 3 && world.rank() == late {
                sleep(Duration::from_millis(20));
            }
            let sum = world.sum("loss", &[numbers[world.rank()], 1.0]).unwrap();
            let largest = world.max("norm", &[world.rank() as f64, f64::NAN]).unwrap();
            (sum, largest[0], largest[1].is_nan())
        });
        assert_eq!(sums, vec![(vec![0.0, 3.0], 2.0, true); 3]);
    }
}

#[test]
fn a_largest_number_is_not_one_whichever_rank_has_it() {
    for bad in 0..2 {
        let norms = [if bad == 0 { f64::NAN } else { 1.0 }, if bad == 1 { f64::NAN } else { 1.0 }];
        let max = on(2, |world| world.max("norm", &[norms[world.rank()]]).unwrap()[0]);
        assert!(max.iter().all(|norm| norm.is_nan()), "{max:?}");
    }
}

#[test]
fn one_vote_is_enough() {
    for voter in 0..3 {
        let votes = on(2, |world| world.any("stop", world.rank() == voter).unwrap());
        assert_eq!(votes, [voter < 2; 2]);
    }
}

#[test]
fn bytes_of_any_length_are_gathered_and_those_of_rank_0_broadcast() {
    let got = on(3, |world| {
        let own = vec![b'x'; world.rank()];
        world.barrier("begin").unwrap();
        let all = world.gather("texts", &own).unwrap();
        let numbers = world.gather_numbers("lengths", &vec![0.5; world.rank()]).unwrap();
        (all, numbers, world.broadcast("checkpoint", own.as_slice()).unwrap())
    });
    for (all, numbers, first) in got {
        assert_eq!(all, [&b""[..], b"x", b"xx"]);
        assert_eq!(numbers, [vec![], vec![0.5], vec![0.5, 0.5]]);
        assert_eq!(first, b"");
    }
    let first = on(2, |world| world.broadcast("seed", &[7 + world.rank() as u8]).unwrap());
    assert_eq!(first, [[7], [7]]);
}

#[test]
fn shares_follow_one_another_and_leave_nothing_out() {
    for (size, count) in [(1, 5), (2, 5), (3, 2), (4, 0), (3, 9)] {
        let shares = on(size, |world| world.share(count));
        let all: Vec<usize> = shares.iter().cloned().flatten().collect();
        assert!(all.into_iter().eq(0..count), "{shares:?}");
        let lens = shares.iter().map(ExactSizeIterator::len);
        assert!(lens.clone().max().unwrap() - lens.min().unwrap() <= 1, "{shares:?}");
    }
}

#[test]
fn an_error_of_one_rank_is_that_of_all_at_once() {
    let start = Instant::now();
    let errors = on(3, |world| {
        if world.rank() == 1 {
            world.fail("no memory for train.jsonl:42");
            return None;
        }
        // The second step's vote, where the error came in the first's passes.
        let step = |_| world.any("stop", false);
        (0..2).map(step).collect::<Result<Vec<_>, _>>().err()
    });
    let failed = WorldError::Failed { rank: 1, cause: "no memory for train.jsonl:42".into() };
    assert_eq!(errors, [Some(failed.clone()), None, Some(failed.clone())]);
    assert_eq!(failed.to_string(), "rank 1 failed: no memory for train.jsonl:42");
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn nobody_waits_for_a_rank_that_is_gone() {
    let start = Instant::now();
    for how in ["returns", "returns late", "panics"] {
        let errors = on(2, |world| {
            world.barrier("begin").unwrap();
            if world.rank() == 0 {
                return world.barrier("end").err();
            }
            if how == "returns late" {
                sleep(Duration::from_millis(50));
            }
            let ended = catch_unwind(AssertUnwindSafe(move || {
                let _world = world;
                assert!(how != "panics", "as a test wants it");
            }));
            assert_eq!(ended.is_err(), how == "panics");
            None
        });
        assert_eq!(errors, [Some(WorldError::Gone { rank: 1 }), None], "{how}");
    }
    assert!(start.elapsed() < LONG / 2);
}

#[test]
fn who_ends_after_the_last_exchange_is_missed_by_nobody() {
    for _ in 0..50 {
        let votes = on(2, |world| world.any("stop", true));
        assert_eq!(votes, [Ok(true), Ok(true)]);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_and_later_finds_the_same_error() {
    let errors = Threads::run(3, SHORT, |world| {
        if world.rank() == 2 {
            sleep(SHORT * 3);
        }
        world.barrier("step 1").unwrap_err()
    });
    let late = WorldError::TimedOut { missing: vec![2], limit: SHORT };
    assert_eq!(errors, [late.clone(), late.clone(), late.clone()]);
    assert_eq!(late.to_string(), "waited 0.2 s for rank 2");
}

#[test]
fn ranks_that_parted_say_where_they_are() {
    let errors = on(2, |world| {
        let operation = if world.rank() == 0 { "stop of step 3" } else { "metrics of step 3" };
        let error = world.any(operation, false).unwrap_err();
        (error.to_string(), world.sum("counts", &vec![0.0; world.rank() + 1]).unwrap_err())
    });
    assert_eq!(
        errors[0].0,
        "rank 0 is at `stop of step 3`, rank 1 at `metrics of step 3`; expected the same"
    );
    assert!(errors[1].0.starts_with("rank 1 is at `metrics of step 3`, rank 0 at "));
    let counts = WorldError::Counts { operation: "counts".into(), expected: 1, rank: 1, got: 2 };
    assert_eq!(errors[0].1, counts);
}

fn metrics(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// Metrics of two ranks, reduced by each.
fn reduced(ranks: [Value; 2]) -> [Result<Map<String, Value>, ReduceError>; 2] {
    let ranks = ranks.map(metrics);
    let reduced = on(2, |world| reduce(&world, Command::Grpo, &ranks[world.rank()]));
    reduced.try_into().unwrap()
}

#[test]
fn metrics_are_reduced_as_they_are_declared() {
    let ranks = [
        json!({
            "step": 3, "reward": 0.5, "rewards/format": null, "loss": 0.25, "entropy": null,
            "sampled_vs_trained_max": 0.5, "skipped_rows": 1, "rewards/llm/judge_asked": 4,
            "secs": {"rollout": 1.5, "total": 4.0, "evaluation": 0.5}, "eval/reward": 0.75,
        }),
        json!({
            "step": 3, "reward": 0.5, "rewards/format": null, "loss": -0.5, "entropy": 2.0,
            "sampled_vs_trained_max": 0.25, "skipped_rows": 2, "rewards/llm/judge_asked": 3,
            "secs": {"rollout": 2.5, "total": 3.0, "reference": 0.5},
        }),
    ];
    let expected = json!({
        "step": 3, "reward": 0.5, "rewards/format": null, "loss": -0.25, "entropy": null,
        "sampled_vs_trained_max": 0.5, "skipped_rows": 3, "rewards/llm/judge_asked": 7,
        "secs": {"rollout": 2.5, "total": 4.0, "evaluation": 0.5, "reference": 0.5}, "eval/reward": 0.75,
    });
    for reduced in reduced(ranks.clone()) {
        assert_eq!(Value::Object(reduced.unwrap()), expected);
    }
    // On one rank they are what they are.
    let [first, _] = ranks.map(metrics);
    assert_eq!(reduce(&Local, Command::Grpo, &first).unwrap(), first);
}

#[test]
fn ranks_that_diverged_are_named_and_undeclared_metrics_refused() {
    let diverged = reduced([json!({"grad_norm": 1.0}), json!({"grad_norm": 1.0000000000000002})]);
    for error in diverged {
        assert_eq!(
            error.unwrap_err().to_string(),
            "metric `grad_norm`: rank 0 has 1.0, rank 1 has 1.0000000000000002; expected the same: the ranks have diverged"
        );
    }
    let [_, missing] = reduced([json!({}), json!({"completions": 4})]);
    assert!(missing.unwrap_err().to_string().contains("rank 0 has none, rank 1 has 4"));
    let [undeclared, _] = reduced([json!({"secs": {"lunch": 1.0}}), json!({})]);
    assert!(matches!(undeclared, Err(ReduceError::Undeclared { name }) if name == "secs/lunch"));
}
