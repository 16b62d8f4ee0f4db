//! Collectives among ranks in threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::{Group, Interrupt, RankError, Store};

const LIMIT: Duration = Duration::from_secs(60);
const SIZES: [usize; 3] = [2, 3, 4];

/// Runs `work` as each rank, and returns the results by rank.
fn run<R: Send>(groups: Vec<Group>, work: impl Fn(Group) -> R + Sync) -> Vec<R> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            groups.into_iter().map(|group| scope.spawn(move || work(group))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(&tensor.to_kind(Kind::Double)).unwrap()
}

fn of(values: &[f64], kind: Kind) -> Tensor {
    Tensor::from_slice(values).to_kind(kind)
}

const SUMMED: [Kind; 8] = [
    Kind::Float,
    Kind::BFloat16,
    Kind::Half,
    Kind::Double,
    Kind::Int64,
    Kind::Int,
    Kind::Int8,
    Kind::Uint8,
];

#[test]
fn sums_and_maxima_are_those_of_all_ranks() {
    for size in SIZES {
        let ranks = run(Group::of_threads(size, LIMIT), |group| {
            let rank = group.rank() as f64;
            let mut results = Vec::new();
            for kind in SUMMED {
                let tensor = of(&[rank + 1.0, 2.0 * rank, 7.0], kind);
                group.all_reduce_sum(&tensor).unwrap();
                results.push(numbers(&tensor));
                let tensor = of(&[rank, 9.0 - rank, 7.0], kind);
                group.all_reduce_max(&tensor).unwrap();
                results.push(numbers(&tensor));
            }
            results
        });
        let n = size as f64;
        let sums = vec![n * (n + 1.0) / 2.0, n * (n - 1.0), 7.0 * n];
        let maxima = vec![n - 1.0, 9.0, 7.0];
        for results in ranks {
            let (pairs, []) = results.as_chunks::<2>() else { panic!("pairs") };
            assert_eq!(pairs.len(), SUMMED.len());
            for pair in pairs {
                assert_eq!(pair, &[sums.clone(), maxima.clone()]);
            }
        }
    }
}

/// The parts of a sum have the bits of the whole sum.
#[test]
fn each_rank_gets_its_part_of_a_sum() {
    for size in SIZES {
        let ranks = run(Group::of_threads(size, LIMIT), |group| {
            let length = 5 * size as i64;
            let give = || {
                let first = 0.1 + 0.3 * group.rank() as f64;
                Tensor::arange(length, (Kind::Float, Device::Cpu)) * 0.7 + first
            };
            let whole = give();
            group.all_reduce_sum(&whole).unwrap();
            let scattered = give();
            let part = group.reduce_scatter_sum(&scattered).unwrap();
            assert_eq!(part.data_ptr(), scattered.narrow(0, 5 * group.rank() as i64, 5).data_ptr());
            assert_eq!(part, whole.narrow(0, 5 * group.rank() as i64, 5));
            numbers(&whole)
        });
        assert!(ranks.iter().all(|sums| sums == &ranks[0]), "{ranks:?}");
        let expected: f64 = (0..size).map(|rank| 0.1 + 0.3 * rank as f64).sum();
        assert!((ranks[0][0] - expected).abs() < 1e-6, "{ranks:?}");
    }
}

#[test]
fn parts_of_every_type_come_together_in_place() {
    const KINDS: [Kind; 10] = [
        Kind::Float,
        Kind::BFloat16,
        Kind::Half,
        Kind::Double,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
        Kind::Bool,
    ];
    for size in SIZES {
        let count = 3 * size as i64;
        run(Group::of_threads(size, LIMIT), |group| {
            for kind in KINDS {
                let expected = Tensor::arange(count, (Kind::Int64, Device::Cpu)).to_kind(kind);
                let whole = expected.zeros_like();
                let own = 3 * group.rank() as i64;
                whole.narrow(0, own, 3).copy_(&expected.narrow(0, own, 3));
                let address = whole.data_ptr();
                group.all_gather(&whole).unwrap();
                assert_eq!(whole, expected, "{kind:?}");
                assert_eq!(whole.data_ptr(), address);
                for root in 0..size {
                    let value = of(&[root as f64 + 1.0, 0.0], kind).view([2, 1]);
                    let tensor = match root == group.rank() {
                        true => value.copy(),
                        false => value.zeros_like(),
                    };
                    group.broadcast(&tensor, root).unwrap();
                    assert_eq!(tensor, value, "{kind:?} from {root}");
                }
            }
        });
    }
}

/// Weights that take gradients are values here.
#[test]
fn a_leaf_is_changed_in_place_and_stays_a_leaf() {
    let weights = run(Group::of_threads(2, LIMIT), |group| {
        let weight = of(&[1.0, 2.0], Kind::Float).set_requires_grad(true);
        group.all_reduce_sum(&weight).unwrap();
        assert!(weight.requires_grad() && weight.is_leaf());
        numbers(&weight)
    });
    assert_eq!(weights, [[2.0, 4.0], [2.0, 4.0]]);
}

#[test]
fn bytes_of_unequal_lengths_are_exchanged() {
    for size in SIZES {
        let give = |rank: usize| {
            let length = [0, 3, 5000, 1016][rank];
            (0..length).map(|index| (index + rank) as u8).collect::<Vec<u8>>()
        };
        let expected: Vec<_> = (0..size).map(give).collect();
        for all in run(Group::of_threads(size, LIMIT), |group| {
            let all = group.exchange(give(group.rank())).unwrap();
            // Short ones take one message.
            assert_eq!(group.exchange(vec![1; 1016]).unwrap(), vec![vec![1; 1016]; size]);
            let operations = group.counts().exchange.operations;
            assert_eq!(operations, if size > 2 { 3 } else { 2 });
            all
        }) {
            assert_eq!(all, expected);
        }
    }
}

#[test]
fn what_was_sent_is_counted() {
    run(Group::of_threads(2, LIMIT), |group| {
        let tensor = Tensor::zeros([6], (Kind::Float, Device::Cpu));
        for _ in 0..3 {
            group.all_reduce_sum(&tensor).unwrap();
        }
        drop(group.reduce_scatter_sum(&tensor).unwrap());
        group.broadcast(&tensor, 1).unwrap();
        let counts = group.counts();
        assert_eq!((counts.all_reduce.operations, counts.all_reduce.bytes), (3, 72));
        assert_eq!((counts.reduce_scatter.operations, counts.reduce_scatter.bytes), (1, 24));
        assert_eq!((counts.broadcast.operations, counts.broadcast.bytes), (1, 24));
        assert_eq!(counts.all_gather, super::Count::default());
        assert!(counts.all_reduce.secs > 0.0);
    });
}

#[test]
fn one_rank_alone_sends_nothing() {
    let group = Group::alone();
    let tensor = of(&[1.5, -2.0], Kind::Float);
    group.all_reduce_sum(&tensor).unwrap();
    group.all_reduce_max(&tensor).unwrap();
    group.all_gather(&tensor).unwrap();
    group.broadcast(&tensor, 0).unwrap();
    assert_eq!(numbers(&group.reduce_scatter_sum(&tensor).unwrap()), [1.5, -2.0]);
    assert_eq!(group.exchange(vec![4]).unwrap(), [[4]]);
    assert_eq!(group.counts(), super::Counts::default());
}

#[test]
fn inputs_that_cannot_be_sent_are_refused_before_anything_is() {
    let errors = run(Group::of_threads(2, LIMIT), |group| {
        let tensor = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
        let small = Tensor::zeros([3], (Kind::Int16, Device::Cpu));
        let errors = [
            group.all_gather(&tensor).unwrap_err().to_string(),
            group.reduce_scatter_sum(&small).unwrap_err().to_string(),
            group.all_reduce_sum(&tensor.transpose(0, 1)).unwrap_err().to_string(),
            group.broadcast(&tensor, 2).unwrap_err().to_string(),
            group.all_reduce_sum(&small).unwrap_err().to_string(),
        ];
        // The group goes on.
        group.all_reduce_sum(&tensor).unwrap();
        errors
    });
    for [whole, parts, gaps, root, kind] in errors {
        assert_eq!(whole, "all_gather: expected a flat tensor of 2 equal parts, got [3, 2]");
        assert_eq!(parts, "reduce_scatter_sum: expected a flat tensor of 2 equal parts, got [3]");
        assert_eq!(gaps, "all_reduce_sum: expected a contiguous tensor, got one with gaps");
        assert_eq!(root, "broadcast: expected a root below 2, got 2");
        assert_eq!(kind, "all_reduce_sum: no arithmetic of int16");
    }
}

/// Without the checks Gloo hangs here, or ends the process.
#[test]
fn ranks_at_different_collectives_are_told_which() {
    let different: [fn(&Group) -> RankError; 3] = [
        |group| {
            let count = if group.rank() == 2 { 5 } else { 4 };
            let tensor = Tensor::zeros([count], (Kind::Float, Device::Cpu));
            group.all_reduce_sum(&tensor).unwrap_err()
        },
        |group| {
            let tensor = Tensor::zeros([3], (Kind::Float, Device::Cpu));
            match group.rank() {
                1 => group.broadcast(&tensor, 2).unwrap_err(),
                _ => group.all_gather(&tensor).unwrap_err(),
            }
        },
        |group| match group.rank() {
            0 => group.exchange(Vec::new()).unwrap_err(),
            _ => group.all_reduce_max(&of(&[1.0], Kind::Double)).unwrap_err(),
        },
    ];
    let expected = [
        "rank 0 is at `all_reduce_sum of 4 float, collective 1`, rank 2 at `all_reduce_sum of 5 float, collective 1`; expected the same on all ranks",
        "rank 0 is at `all_gather of 3 float, collective 1`, rank 1 at `broadcast of 3 float from rank 2, collective 1`; expected the same on all ranks",
        "rank 0 is at `exchange of 3072 uint8, collective 1`, rank 1 at `all_reduce_max of 1 double, collective 1`; expected the same on all ranks",
    ];
    for (different, expected) in different.into_iter().zip(expected) {
        let began = Instant::now();
        for error in run(Group::of_threads(3, LIMIT), |group| {
            let error = different(&group);
            assert_eq!(group.exchange(Vec::new()).unwrap_err(), error);
            error
        }) {
            assert_eq!(error.to_string(), expected);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

#[test]
fn an_interrupt_ends_a_wait_within_a_second() {
    let is_told = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&is_told);
    let interrupt: Interrupt =
        Arc::new(move || tells.load(Ordering::Relaxed).then(|| "rank 1 failed".to_owned()));
    let told = Instant::now() + Duration::from_millis(700);
    run(Group::of_threads_with(2, LIMIT, &interrupt), |group| {
        if group.rank() == 1 {
            thread::sleep(told.saturating_duration_since(Instant::now()));
            is_told.store(true, Ordering::Relaxed);
            // Alive, and not there.
            thread::sleep(Duration::from_secs(2));
            return;
        }
        let tensor = of(&[1.0], Kind::Float);
        let error = group.all_reduce_sum(&tensor).unwrap_err();
        let waited = told.elapsed();
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        assert_eq!(error.to_string(), "all_reduce_sum: gave up waiting: rank 1 failed");
        assert!(matches!(error, RankError::Interrupted { .. }));
        let again = Instant::now();
        assert_eq!(group.exchange(vec![1]).unwrap_err(), error);
        drop(group);
        assert!(again.elapsed() < Duration::from_millis(500), "waits for what cannot come");
    });
}

#[test]
fn a_wait_in_vain_says_for_what() {
    let limit = Duration::from_millis(600);
    let began = Instant::now();
    run(Group::of_threads(2, limit), |group| {
        if group.rank() == 1 {
            thread::sleep(Duration::from_secs(2));
            return;
        }
        let error = group.broadcast(&of(&[1.0], Kind::Float), 1).unwrap_err();
        assert!(matches!(error, RankError::TimedOut { .. }), "{error}");
        assert_eq!(error.to_string(), "broadcast: waited 0.6 s for other ranks");
    });
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_rank_that_leaves_is_a_broken_connection() {
    run(Group::of_threads(2, LIMIT), |group| {
        if group.rank() == 1 {
            return;
        }
        let began = Instant::now();
        let error = group.all_reduce_sum(&of(&[1.0], Kind::Float)).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(5));
        let RankError::Connection { operation, cause } = error else { panic!("{error}") };
        assert_eq!(operation, "all_reduce_sum");
        println!("{cause}");
        assert!(!cause.contains('\n') && !cause.contains(".cc:"), "{cause}");
    });
}

#[test]
fn a_store_keeps_what_is_put_into_it() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = Store::tcp("127.0.0.1", port, true, LIMIT).unwrap();
    let client = Store::tcp("127.0.0.1", port, false, LIMIT).unwrap();
    for (one, other) in [(Store::in_process(), None), (host, Some(client))] {
        let other = other.unwrap_or_else(|| one.clone());
        assert_eq!(one.get("fault").unwrap(), None);
        one.set("fault", b"").unwrap();
        assert_eq!(other.get("fault").unwrap(), Some(Vec::new()));
        other.set("fault", &[0, 255, 1]).unwrap();
        assert_eq!(one.wait("fault", LIMIT).unwrap(), [0, 255, 1]);
        assert_eq!(one.add("ranks", 2).unwrap(), 2);
        assert_eq!(other.add("ranks", 3).unwrap(), 5);
        let run = one.prefixed("run/1");
        assert_eq!(run.get("fault").unwrap(), None);
        run.set("fault", b"x").unwrap();
        assert_eq!(other.get("fault").unwrap(), Some(vec![0, 255, 1]));
        assert_eq!(other.prefixed("run/1").get("fault").unwrap(), Some(b"x".to_vec()));
        let began = Instant::now();
        let error = other.wait("never", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(error, RankError::TimedOut { .. }), "{error}");
        assert_eq!(error.to_string(), "store, wait for `never`: waited 0.3 s for other ranks");
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}

#[test]
fn without_a_server_there_is_no_store() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let began = Instant::now();
    let error = Store::tcp("127.0.0.1", port, false, Duration::from_secs(1)).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(error.to_string().starts_with(&format!("store at 127.0.0.1:{port}: ")), "{error}");
}
