//! A rank that fails, dies or stops: the others leave in time and say which.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::rank::{OTHER, OWN};
use crate::run::Run;

const SIZE: usize = 3;
/// From the fault to the end of the other processes, on a busy machine. What is promised is a second, and the program's end comes on top.
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_killed_rank_is_named_with_its_place() {
    // Rank 0 serves the store.
    for (odd, task) in [(0, "control"), (1, "tensors"), (2, "control"), (0, "tensors")] {
        let mut run = Run::start(SIZE, task, odd, 300);
        run.wait_until_ready(SIZE);
        let began = Instant::now();
        run.send(odd, Signal::KILL);
        let left = run.wait(Some(odd), SOON);
        println!("rank {odd}, {task}: {:?}", began.elapsed());
        assert_eq!(left.len(), SIZE - 1);
        for left in left {
            assert_eq!(left.code, Some(OTHER), "{}", left.output);
            let expected = format!(
                "rank {odd} (host {}, step 12, rollout, train.jsonl:42) ended\nhint: ",
                rustix::system::uname().nodename().to_string_lossy()
            );
            assert!(left.said.starts_with(&expected), "rank {}: {}", left.rank, left.output);
        }
    }
}

#[test]
fn a_rank_that_fails_says_why_to_all() {
    for (odd, task) in [(0, "tensors"), (2, "control")] {
        let mut run = Run::start(SIZE, task, odd, 300);
        run.wait_until_ready(SIZE);
        fs::write(run.folder().join("fail"), "").unwrap();
        let all = run.wait(None, SOON);
        let time = |rank: usize| {
            let path = run.folder().join(format!("error-{rank}.json"));
            let read: serde_json::Value =
                serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
            read["message"]["extraInfo"]["timestamp"].as_str().unwrap().parse::<u64>().unwrap()
        };
        for left in all {
            if left.rank == odd {
                assert_eq!(left.code, Some(OWN), "{}", left.output);
                continue;
            }
            assert_eq!(left.code, Some(OTHER), "{}", left.output);
            let expected = format!(
                "rank {odd} failed: host {}, step 12, rollout, train.jsonl:42: no memory for train.jsonl:42",
                rustix::system::uname().nodename().to_string_lossy()
            );
            assert!(left.said.starts_with(&expected), "rank {}: {}", left.rank, left.output);
            // What `torchrun` shows as the root cause.
            assert!(time(odd) < time(left.rank));
        }
    }
}

/// A process that is stopped, or whose cable is pulled, closes no connection.
#[test]
fn a_stopped_rank_is_named_at_the_limit() {
    let limit_secs = 6;
    for (odd, task) in [(0, "control"), (1, "tensors")] {
        let mut run = Run::start(SIZE, task, odd, limit_secs);
        run.wait_until_ready(SIZE);
        run.send(odd, Signal::STOP);
        let left = run.wait(Some(odd), Duration::from_secs(limit_secs) + SOON);
        for left in &left {
            assert_eq!(left.code, Some(OTHER), "{}", left.output);
            let expected = format!("waited {limit_secs} s for rank {odd}");
            assert!(left.said.starts_with(&expected), "rank {}: {}", left.rank, left.output);
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let told: Vec<_> = left
            .iter()
            .filter(|left| left.output.contains(&format!("\n  rank {odd} (host {host}): ")))
            .collect();
        if odd == 0 {
            // Nobody else knows of all.
            assert!(told.iter().all(|left| left.output.contains("does not answer")), "{left:#?}");
            assert!(!told.is_empty(), "{left:#?}");
        } else {
            assert_eq!(told.len(), 1, "{left:#?}");
            assert_eq!(told[0].rank, 0);
            let waits = format!("rank 2 (host {host}): step 12, update; waits for ");
            assert!(told[0].output.contains(&waits), "{}", told[0].output);
        }
    }
}
