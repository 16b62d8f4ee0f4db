//! Every rule over generated texts, and over ever longer ones. `cargo run --release -p rewards
//! --example fuzz` does the same over millions.

mod generate;
mod rules;

use std::time::Duration;

use generate::{Draws, pair};
use rules::{families, member, rules, truths};

const INPUTS: u64 = 5_000;

#[test]
fn generated_texts_score_in_range() {
    let rules = rules();
    for index in 0..INPUTS {
        let (completion, truth) = pair(&mut Draws::new(1, index));
        for rule in &rules {
            if let Err(wrong) = rule.run(&completion, &truth, true) {
                panic!("{}: {wrong}\ninput {index}: {completion:?}\ntruth: {truth:?}", rule.name);
            }
        }
    }
}

/// Four times the length takes at most nine times the time. Below `FLOOR`, times say nothing; they are
/// of this thread alone, and a ratio above is measured anew.
#[test]
fn time_grows_with_length_alone() {
    const FLOOR: Duration = Duration::from_millis(3);
    const REPEATS: usize = 5;
    let (rules, truths) = (rules(), truths());
    for (n, (piece, around)) in families().enumerate() {
        let [short, long] = [10_000, 40_000].map(|length| member(&piece, around, length));
        // Families and truths have no common divisor, so that every piece meets several truths.
        let truth = &truths[n % truths.len()];
        for rule in &rules {
            let time = |text: &String| rule.run(text, truth, false).expect("scores");
            let best = |text| (0..REPEATS).map(|_| time(text)).min().expect("some");
            let took = time(&long);
            if took < FLOOR {
                continue;
            }
            let (short, long) = (best(&short), best(&long));
            assert!(
                long < FLOOR || long < 9 * short,
                "{} on {piece:?} in {around:?}: {short:?}, then {long:?}; truth {truth:.40}",
                rule.name
            );
        }
    }
}
