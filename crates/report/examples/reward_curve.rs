//! Draws the reward of a run: `cargo run -p report --example reward_curve -- RUN_FOLDER OUT.svg`.

use std::path::Path;

use report::{read_metrics, reward_curve, write_svg};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, out] = arguments.as_slice() else {
        return Err("expected RUN_FOLDER OUT.svg".into());
    };
    let rows = read_metrics(&Path::new(run).join("metrics.jsonl"))?;
    let chart = reward_curve(&rows).ok_or("the run has no `reward`")?;
    write_svg(Path::new(out), &chart)?;
    Ok(())
}
