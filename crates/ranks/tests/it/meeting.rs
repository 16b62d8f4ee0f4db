//! How ranks come together, and part.

use std::time::Duration;

use torch::ranks::Store;

use crate::rank::{OTHER, OWN};
use crate::run::{Run, free_port, variables};

#[test]
fn ranks_meet_work_and_leave() {
    for left in Run::start(3, "work", 9, 60).wait_for_all() {
        assert_eq!(left.code, Some(0), "{}", left.output);
        assert!(left.said.starts_with("[3.0, 3.0, 3.0]"), "{}", left.output);
        // c10d writes lines of its own, with frames of its stack, where something is wrong.
        assert!(
            !left.output.contains("c10d") && !left.output.contains("frame #"),
            "{}",
            left.output
        );
    }
}

/// As under `torchrun`, whose agent serves the store, and which starts ranks again.
#[test]
fn ranks_meet_at_the_store_of_an_agent_and_meet_again() {
    let port = free_port();
    let _agent = Store::tcp("127.0.0.1", port, true, Duration::from_secs(60)).unwrap();
    for restarts in 0..2 {
        let mut run = Run::new();
        for rank in 0..2 {
            let mut variables = variables(rank, 2, port);
            variables.push(("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()));
            variables.push(("TORCHELASTIC_RESTART_COUNT", restarts.to_string()));
            run.add(rank, "work", 9, 60, &variables);
        }
        for left in run.wait_for_all() {
            assert_eq!(left.code, Some(0), "{}", left.output);
        }
    }
}

#[test]
fn ranks_that_differ_are_told_in_what() {
    for left in Run::start(3, "facts", 2, 60).wait_for_all() {
        assert_eq!(left.code, Some(OTHER), "{}", left.output);
        let host = ranks_host();
        let expected = format!(
            "ranks differ\n  threads: `4` on ranks 0, 1 (host {host}), `8` on rank 2 (host {host})\nhint: "
        );
        assert!(left.said.starts_with(&expected), "{}", left.output);
    }
}

fn ranks_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let (mut run, port) = (Run::new(), free_port());
    for rank in [0, 2] {
        run.add(rank, "work", 9, 8, &variables(rank, 4, port));
    }
    for left in run.wait_for_all() {
        assert_eq!(left.code, Some(OWN), "{}", left.output);
        let expected = "waited 8 s for 2 of 4 ranks: 1, 3\nhint: ";
        assert!(left.said.starts_with(expected), "{}", left.output);
    }
}

#[test]
fn two_processes_are_not_one_rank() {
    let (mut run, port) = (Run::new(), free_port());
    for rank in 0..2 {
        run.add(rank, "control", 0, 60, &variables(rank, 2, port));
    }
    run.wait_until_ready(2);
    run.add(1, "control", 0, 60, &variables(1, 2, port));
    let left = run.wait_for_added(2);
    assert_eq!(left.code, Some(OWN), "{}", left.output);
    assert!(left.said.starts_with("another process is rank 1 already\nhint: "), "{}", left.output);
}

#[test]
fn without_rank_0_there_is_no_store() {
    let (mut run, port) = (Run::new(), free_port());
    run.add(1, "work", 9, 4, &variables(1, 2, port));
    let left = run.wait_for_added(0);
    assert_eq!(left.code, Some(OWN), "{}", left.output);
    let expected = format!("store at 127.0.0.1:{port}: ");
    assert!(left.said.starts_with(&expected), "{}", left.output);
    assert!(left.said.contains("\nhint: is rank 0 running"), "{}", left.output);
}

#[test]
fn two_ranks_of_a_host_need_local_ranks() {
    let (mut run, port) = (Run::new(), free_port());
    for rank in 0..2 {
        let mut variables = variables(rank, 2, port);
        variables.retain(|(name, _)| !name.starts_with("LOCAL"));
        run.add(rank, "work", 9, 60, &variables);
    }
    for left in run.wait_for_all() {
        assert_eq!(left.code, Some(OWN), "{}", left.output);
        let expected = format!("ranks 0 and 1 of host {} both have local rank 0", ranks_host());
        assert!(left.said.starts_with(&expected), "{}", left.output);
    }
}
