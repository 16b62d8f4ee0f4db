//! Scores of completions that come one by one are those of the whole batch.

use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};

use rewards::{
    Reward, RewardBatch, RewardError, RewardInput, RewardSet, Scores, ScoringQueue, StepSize,
};
use serde_json::Map;

use crate::generic_options;

const SIZE: StepSize = StepSize { rows: 12, group: 4 };

/// Each answer by its length beside the mean of what is shown at once, so that a batch cut wrongly shows.
struct Beside {
    batch: RewardBatch,
    asked: Mutex<Vec<usize>>,
}

impl Beside {
    fn new(batch: RewardBatch) -> Self {
        let asked = Mutex::default();
        Self { batch, asked }
    }
}

impl Reward for Beside {
    fn name(&self) -> &str {
        match self.batch {
            RewardBatch::Step => "step",
            RewardBatch::Group => "group",
            RewardBatch::Completion => "completion",
        }
    }

    fn is_by_row(&self) -> bool {
        false
    }

    fn batch(&self) -> RewardBatch {
        self.batch
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        self.asked.lock().expect("no panic").push(rows.len());
        let len = |row: &RewardInput<'_>| row.completion.len() as f64;
        let mean = match self.batch {
            RewardBatch::Completion => 0.0,
            _ => rows.iter().map(len).sum::<f64>() / rows.len() as f64,
        };
        // The place within the batch makes the order count.
        let score = |(place, row): (usize, &RewardInput<'_>)| match self.batch {
            RewardBatch::Completion => Some(len(row)),
            _ => Some(len(row) - mean + place as f64 * 100.0),
        };
        Ok(rows.iter().enumerate().map(score).collect())
    }
}

/// Answers of which no two are equal, some right.
fn texts() -> Vec<String> {
    let text = |n: usize| {
        let think = "x".repeat(n * n % 17 + n);
        format!("<think>{think}</think><answer>{}</answer>", n % 3)
    };
    (0..SIZE.rows).map(text).collect()
}

fn rows<'a>(
    texts: &'a [String],
    columns: &'a Map<String, serde_json::Value>,
) -> Vec<RewardInput<'a>> {
    let row = |text: &'a String| RewardInput {
        accu_reward_method: Some("all_match"),
        ..RewardInput::new(text, "<answer>1</answer>", columns)
    };
    texts.iter().map(row).collect()
}

fn told(order: &[usize]) -> impl FnOnce(&ScoringQueue<'_, '_>) -> Result<(), RewardError> {
    |queue| {
        order.iter().for_each(|&index| {
            queue.push(index);
            std::thread::yield_now();
        });
        Ok(())
    }
}

/// Orders in which answers may end.
fn orders() -> Vec<Vec<usize>> {
    let by = |key: fn(usize) -> usize| {
        let mut order: Vec<usize> = (0..SIZE.rows).collect();
        order.sort_by_key(|&index| key(index));
        order
    };
    vec![by(|n| n), by(|n| 12 - n), by(|n| n * 5 % 12), by(|n| n % 4)]
}

#[test]
fn scores_do_not_depend_on_when_answers_end() {
    let (texts, columns) = (texts(), Map::new());
    let rows = rows(&texts, &columns);
    for batch in [RewardBatch::Completion, RewardBatch::Group] {
        let plain = RewardSet::build(
            &["accuracy", "format", "repetition"].map(String::from),
            Some(&[1.0, 0.5, 0.25]),
            &generic_options(),
        )
        .unwrap();
        let own = RewardSet::new(
            vec![Box::new(Beside::new(batch)), Box::new(Beside::new(RewardBatch::Step))],
            Some(&[2.0, 0.1]),
        )
        .unwrap();
        let by_group = |set: &RewardSet| -> Vec<Scores> {
            rows.chunks(SIZE.group).map(|rows| set.score(rows).unwrap()).collect()
        };
        for order in orders() {
            let (_, scores) = plain.score_while(SIZE, |i| rows[i], told(&order)).unwrap();
            assert_eq!(scores, plain.score(&rows).unwrap(), "{order:?}");
            let (_, scores) = own.score_while(SIZE, |i| rows[i], told(&order)).unwrap();
            assert_eq!(scores.per_reward[1], own.score(&rows).unwrap().per_reward[1]);
            let groups: Vec<_> =
                by_group(&own).iter().flat_map(|s| s.per_reward[0].clone()).collect();
            assert_eq!(scores.per_reward[0], groups, "{order:?}");
            for (row, total) in scores.total.iter().enumerate() {
                let part = |reward: usize| scores.per_reward[reward][row].unwrap();
                assert_eq!(*total, 2.0 * part(0) + 0.1 * part(1));
            }
        }
    }
}

#[test]
fn each_is_asked_for_what_it_needs_at_once() {
    struct Shared(std::sync::Arc<Beside>);
    impl Reward for Shared {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn batch(&self) -> RewardBatch {
            self.0.batch()
        }
        fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
            self.0.score(rows)
        }
    }
    let (texts, columns) = (texts(), Map::new());
    let rows = rows(&texts, &columns);
    let [step, group] =
        [RewardBatch::Step, RewardBatch::Group].map(|b| std::sync::Arc::new(Beside::new(b)));
    let set = [&step, &group].map(|reward| Box::new(Shared(reward.clone())) as Box<dyn Reward>);
    let set = RewardSet::new(set.into(), None).unwrap();
    set.score_while(SIZE, |i| rows[i], told(&orders()[3])).unwrap();
    assert_eq!(*step.asked.lock().unwrap(), [12]);
    assert_eq!(*group.asked.lock().unwrap(), [4, 4, 4]);
    // Sampling that breaks off: no batch that is not whole is asked for.
    let broken = set.score_while(
        SIZE,
        |i| rows[i],
        |queue| {
            (0..6).for_each(|index| queue.push(index));
            Err::<(), _>(RewardError::PatchSize)
        },
    );
    assert_eq!(broken, Err(RewardError::PatchSize));
    assert_eq!(*step.asked.lock().unwrap(), [12]);
    assert_eq!(*group.asked.lock().unwrap(), [4, 4, 4, 4]);
}

/// Does not answer until it is let.
struct Held {
    gate: Mutex<Receiver<()>>,
    begun: Sender<usize>,
}

impl Reward for Held {
    fn name(&self) -> &str {
        "held"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        self.begun.send(rows.len()).expect("a listener");
        let gate = self.gate.lock().expect("no panic");
        gate.recv().expect("to be let");
        Ok(vec![Some(1.0); rows.len()])
    }
}

#[test]
fn a_slow_reward_begins_with_the_first_answer_and_holds_nobody_up() {
    let ((open, gate), (begun, seen)) = (mpsc::channel(), mpsc::channel());
    let gate = Mutex::new(gate);
    let set = RewardSet::new(vec![Box::new(Held { gate, begun })], None).unwrap();
    let (texts, columns) = (texts(), Map::new());
    let rows = rows(&texts, &columns);
    let sample = |queue: &ScoringQueue<'_, '_>| -> Result<(), RewardError> {
        queue.push(0);
        assert_eq!(seen.recv().unwrap(), 1, "begun while others are sampled");
        // All the rest ends while the reward is still at the first.
        (1..SIZE.rows).for_each(|index| queue.push(index));
        assert!(!queue.has_failed());
        open.send(()).unwrap();
        open.send(()).unwrap();
        Ok(())
    };
    let (_, scores) = set.score_while(SIZE, |i| rows[i], sample).unwrap();
    assert_eq!(scores.total, [1.0; 12]);
    assert_eq!(seen.recv().unwrap(), 11, "what had ended is asked for together");
}

#[test]
fn a_row_that_fails_is_named_within_the_step_and_ends_the_sampling() {
    let (texts, columns) = (texts(), Map::new());
    let mut rows = rows(&texts, &columns);
    rows[9].accu_reward_method = Some("all_mach");
    let set = RewardSet::build(&["format", "accuracy"].map(String::from), None, &generic_options())
        .unwrap();
    let mut told = 0;
    let sample = |queue: &ScoringQueue<'_, '_>| {
        for index in [3, 9] {
            queue.push(index);
        }
        while !queue.has_failed() {
            std::thread::yield_now();
        }
        queue.push(4);
        told += 1;
        // What breaks off because of a reward is that reward's failure.
        Err::<(), _>(RewardError::PatchSize)
    };
    let error = set.score_while(SIZE, |i| rows[i], sample).unwrap_err();
    assert_eq!((error.row(), told), (Some(9), 1));
    assert_eq!(Err(error), set.score(&rows));
}

/// Breaks on an answer.
struct Panics;

impl Reward for Panics {
    fn name(&self) -> &str {
        "panics"
    }

    fn score(&self, rows: &[RewardInput<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let answers = rows.iter().map(|row| row.completion.len());
        assert!(answers.max() < Some(20), "too long for me");
        Ok(vec![None; rows.len()])
    }
}

#[test]
#[should_panic(expected = "too long for me")]
fn a_panic_of_a_reward_goes_on() {
    let (texts, columns) = (texts(), Map::new());
    let rows = rows(&texts, &columns);
    let set = RewardSet::new(vec![Box::new(Panics)], None).unwrap();
    let _ = set.score_while(SIZE, |i| rows[i], told(&orders()[0]));
}
