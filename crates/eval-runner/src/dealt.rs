//! An evaluation over several ranks: each asks a part of the questions, rank 0 keeps all completions.

use base::console::describe;
use base::world::World;
use engine::{EngineError, SampleStats};
use eval::completions::{SampledCompletion, Todo};
use serde::{Deserialize, Serialize};

use crate::AskError;
use crate::runner::Sink;

/// What a rank tells of a part, in its order.
#[derive(Debug, Serialize, Deserialize)]
enum Event {
    Completion(SampledCompletion),
    Bad { row: usize, cause: String },
    Sampled { tokens: usize, boundary_draws: usize, secs: f64 },
}

/// How a part ended.
#[derive(Debug, Serialize, Deserialize)]
enum End {
    Done,
    Cancelled,
    Failed(String),
}

#[derive(Debug, Default)]
struct Collected(Vec<Event>);

impl Sink for Collected {
    fn completion(&mut self, completion: SampledCompletion) -> Result<(), AskError> {
        self.0.push(Event::Completion(completion));
        Ok(())
    }

    fn bad(&mut self, row: usize, cause: String) -> Result<(), AskError> {
        self.0.push(Event::Bad { row, cause });
        Ok(())
    }

    fn sampled(&mut self, stats: &SampleStats, secs: f64) -> Result<(), AskError> {
        let SampleStats { tokens, boundary_draws, .. } = *stats;
        self.0.push(Event::Sampled { tokens, boundary_draws, secs });
        Ok(())
    }
}

/// Asks what rank 0 has in `todo`, about `at_once` completions a rank at a time; `sink`, of rank 0, gets them all.
pub fn ask(
    world: &dyn World,
    todo: Option<Vec<Todo>>,
    at_once: usize,
    ask: impl Fn(&[Todo], &mut dyn Sink) -> Result<(), AskError>,
    mut sink: Option<&mut dyn Sink>,
) -> Result<(), AskError> {
    let text = serde_json::to_vec(&todo.unwrap_or_default())?;
    let todo: Vec<Todo> = serde_json::from_slice(&world.broadcast("questions to ask", &text)?)?;
    let mut rest = todo.as_slice();
    while !rest.is_empty() {
        let (part, others) = rest.split_at(part_len(rest, at_once * world.size()));
        rest = others;
        // One after another: questions of one kind often lie together, and take as long.
        let own = part.iter().skip(world.rank()).step_by(world.size()).cloned();
        let mut collected = Collected::default();
        let asked = ask(&own.collect::<Vec<_>>(), &mut collected);
        let end = match &asked {
            Ok(()) => End::Done,
            Err(AskError::Engine(EngineError::Cancelled { .. })) => End::Cancelled,
            Err(error) => End::Failed(describe(error)),
        };
        let all = world.gather("completions", &serde_json::to_vec(&(end, collected.0))?)?;
        let mut ends = Vec::new();
        let mut kept = Ok(());
        for text in &all {
            let (end, events): (End, Vec<Event>) = serde_json::from_slice(text)?;
            ends.push(end);
            if let Some(sink) = &mut sink {
                kept = kept.and_then(|()| keep(*sink, events));
            }
        }
        // What the others sampled is kept, whoever failed.
        asked?;
        first_end(&ends)?;
        let verdict = kept.as_ref().map_or_else(|error| describe(error), |()| String::new());
        let verdict = world.broadcast("completions are kept", verdict.as_bytes())?;
        kept?;
        if !verdict.is_empty() {
            let cause = String::from_utf8_lossy(&verdict).into_owned();
            return Err(AskError::OtherRank { rank: 0, cause });
        }
    }
    Ok(())
}

/// How many of `todo` have about `completions` completions; one at least.
fn part_len(todo: &[Todo], completions: usize) -> usize {
    let mut sum = 0;
    let is_within = |todo: &&Todo| {
        let fits = sum < completions;
        sum += todo.completions.iter().map(|range| range.len()).sum::<usize>();
        fits
    };
    todo.iter().take_while(is_within).count().max(1)
}

fn keep(sink: &mut dyn Sink, events: Vec<Event>) -> Result<(), AskError> {
    for event in events {
        match event {
            Event::Completion(completion) => sink.completion(completion)?,
            Event::Bad { row, cause } => sink.bad(row, cause)?,
            Event::Sampled { tokens, boundary_draws, secs } => sink
                .sampled(&SampleStats { tokens, boundary_draws, ..SampleStats::default() }, secs)?,
        }
    }
    Ok(())
}

/// The end of a rank that did not ask all that it had.
fn first_end(ends: &[End]) -> Result<(), AskError> {
    for (rank, end) in ends.iter().enumerate() {
        match end {
            End::Done => {}
            End::Cancelled => {
                return Err(EngineError::Cancelled { finished: 0, total: 0 }.into());
            }
            End::Failed(cause) => {
                return Err(AskError::OtherRank { rank, cause: cause.clone() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::FinishReason;
    use base::world::Threads;

    use super::*;

    fn todo(count: usize) -> Vec<Todo> {
        let todo = |row| Todo { row, place: row, completions: vec![0..1, 1..2] };
        (0..count).map(todo).collect()
    }

    fn completion(row: usize, completion_index: usize) -> SampledCompletion {
        SampledCompletion {
            row,
            completion_index,
            text: format!("{row}.{completion_index}"),
            tokens: 1,
            finish_reason: FinishReason::Stop,
            sizes: Vec::new(),
            image_grid_thw: Vec::new(),
        }
    }

    fn answer(todo: &[Todo], sink: &mut dyn Sink) -> Result<(), AskError> {
        for todo in todo {
            if todo.row == 3 {
                sink.bad(3, "no image".to_owned())?;
                continue;
            }
            for index in todo.completions.iter().cloned().flatten() {
                sink.completion(completion(todo.row, index))?;
            }
        }
        Ok(())
    }

    fn seen(events: &[Event]) -> Vec<String> {
        let mut seen: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
        seen.sort();
        seen
    }

    #[test]
    fn ranks_ask_what_one_asks() {
        let mut one = Collected::default();
        answer(&todo(11), &mut one).unwrap();
        for size in 2..=4 {
            let kept = Threads::run(size, Duration::from_secs(60), |world| {
                let mut kept = Collected::default();
                let is_main = world.rank() == 0;
                let list = is_main.then(|| todo(11));
                let sink = is_main.then_some(&mut kept as &mut dyn Sink);
                ask(&world, list, 2, answer, sink).unwrap();
                kept.0
            });
            assert_eq!(seen(&kept[0]), seen(&one.0), "{size} ranks");
            assert!(kept[1..].iter().all(Vec::is_empty));
        }
    }

    #[test]
    fn a_rank_that_fails_or_stops_ends_all_and_what_was_sampled_is_kept() {
        let run = |how: &(dyn Fn() -> AskError + Sync)| {
            Threads::run(2, Duration::from_secs(60), |world| {
                let mut kept = Collected::default();
                let is_main = world.rank() == 0;
                let list = is_main.then(|| todo(8));
                let sink = is_main.then_some(&mut kept as &mut dyn Sink);
                let other = world.rank() == 1;
                let asked = |todo: &[Todo], sink: &mut dyn Sink| {
                    if other { Err(how()) } else { answer(todo, sink) }
                };
                let error = ask(&world, list, 2, asked, sink).unwrap_err();
                (describe(&error), kept.0.len())
            })
        };
        let broken = || AskError::OtherRank { rank: 7, cause: "broken".to_owned() };
        let failed = run(&broken);
        assert_eq!(failed[0].0, "rank 1 failed: rank 7 failed: broken");
        assert_eq!((failed[0].1, failed[1].1), (2, 0));
        let stopped = run(&|| EngineError::Cancelled { finished: 0, total: 0 }.into());
        assert!(
            stopped[0].0.contains("cancelled") || stopped[0].0.contains("stopped"),
            "{stopped:?}"
        );
    }

    #[test]
    fn parts_have_one_question_at_least() {
        assert_eq!(part_len(&todo(5), 3), 2);
        assert_eq!(part_len(&todo(5), 0), 1);
        assert_eq!(part_len(&todo(5), 100), 5);
    }
}
