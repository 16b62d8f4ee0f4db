//! `plan`: memory by component, the micro-batch that fits, time and cost, before a run is begun.

use base::console::count;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use base::model_folder::read_config;
use config::{CudaGraphs, PlanConfig, ZeroStage, ZeroStageSetting};
use train::plan::{
    CARDS, Card, Choice, Memory, NETWORKS, PlanInputs, Ranks, Trained, bytes_sent,
    completions_that_fit, memory, num_trained, plan_inputs, predict, step_secs,
};

use cli::hub;
use cli::which_model::folder_or_name;

/// Prints the table. Weights are neither read nor fetched. With a card's name as device nothing is timed: the step is
/// predicted for that card.
///
/// # Errors
/// A model folder, settings or rows that `grpo` would refuse; a GPU whose memory is not given; a device that is neither
/// here nor a known card.
pub fn plan(config: &PlanConfig) -> Result<()> {
    let mut run = config.grpo.clone();
    super::warn_of_missing_box_reward(&run);
    run.model.model_name_or_path = folder_or_name(&run.model.model_name_or_path)?;
    let folder = hub::description_folder(
        &run.model.model_name_or_path,
        run.model.model_revision.as_deref(),
    )?;
    let card = card_of(&run.machine.device)?;
    // A card is expected to prove them.
    let graphs = run.rollout.cuda_graphs.asked() != Some(false);
    if card.is_some() {
        // What the card would refuse or want is not asked of the machine that plans.
        run.machine.device = "cpu".into();
        run.rollout.cuda_graphs = CudaGraphs::Off;
    }
    let mut inputs = plan_inputs(&run, config.plan.ranks, &folder)?;
    if card.is_some() {
        inputs.choice.cpu_kernels = false;
    }
    let mut available: Vec<(String, u64)> =
        config.plan.memory.iter().cloned().zip(config.plan.memory_bytes()?).collect();
    if let (Some(card), true) = (card, available.is_empty()) {
        available.push((format!("{}, 1/10 left free", card.name), card.usable_bytes()));
    }
    if available.is_empty() {
        if inputs.device.is_cuda() {
            bail!("the memory of a GPU is not known\nhint: say it, as --memory 24GiB");
        }
        let bytes = host_memory()?;
        available.push((format!("{} MiB", mebibytes(bytes)), bytes));
    }
    if let Some(threads) = run.machine.num_threads {
        tch::set_num_threads(threads as i32);
    }
    print_load(&inputs);
    let choices = choices(&inputs);
    print_memory(&inputs, &choices);
    print_disk(&inputs, &choices, bytes_of_weight(&folder)?);
    print_fits(&inputs, &choices, &available);
    print_stage_three(&inputs, &available);
    let secs = match card {
        Some(card) => predicted(&inputs, &choices, &card, graphs),
        None => timed(&inputs, &choices)?.map(Some),
    };
    print_secs(&inputs, &choices, secs, config.plan.cost_per_hour);
    if run.eval.eval_config.is_some() {
        base::print_data!("evaluations take time and memory of their own, which is not counted");
    }
    Ok(())
}

/// What is trained three ways, and for each the run's other settings.
fn choices(inputs: &PlanInputs) -> [(&'static str, Choice); 3] {
    let with = |trained| Choice { trained, ..inputs.choice };
    [
        ("full", with(Trained::Full)),
        ("frozen tower", with(Trained::FrozenVision)),
        ("LoRA", with(inputs.lora)),
    ]
}

fn print_load(inputs: &PlanInputs) {
    let batch = &inputs.micro_batch;
    base::print_data!(
        "{} looked at: prompts of at most {} tokens and {} patches; completions of at most {} tokens",
        count(inputs.rows as u64, "row"),
        batch.prompt_tokens,
        batch.patches,
        batch.completion_tokens
    );
    base::print_data!(
        "a step: {}, {}; a micro-batch: {}, {} tokens",
        count(inputs.prompts, "prompt"),
        count(inputs.completions, "completion"),
        count(batch.completions, "completion"),
        batch.tokens()
    );
    print_ranks(inputs);
    let choice = inputs.choice;
    let (kind, kept) = (
        if choice.bf16 { "bf16" } else { "f32" },
        if choice.recompute { "recomputed" } else { "kept" },
    );
    let trained = match choice.trained {
        Trained::Full => "all weights",
        Trained::FrozenVision => "all but the vision tower",
        Trained::Lora { .. } => "LoRA adapters",
    };
    let moments = if choice.in_8bit { "moments in 8 bits, " } else { "" };
    let places = [
        (choice.offload_optimizer, "masters, moments and gradient sums"),
        (choice.offload_reference, "reference"),
    ];
    let away: Vec<&str> = places.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    let away = match away.as_slice() {
        [] => String::new(),
        what => format!("; in host memory: {}", what.join(", ")),
    };
    base::print_data!("{kind}, {moments}activations {kept}; these flags train {trained}{away}\n");
}

fn print_ranks(inputs: &PlanInputs) {
    let ranks = inputs.choice.ranks.count;
    if ranks > 1 {
        let shards = match inputs.choice.zero_stage() {
            ZeroStage::Zero => "nothing in shards (stage 0)",
            ZeroStage::Two => {
                "exact weights, moments, summed gradients and reference in shards (stage 2)"
            }
        };
        base::print_data!(
            "{ranks} ranks: {} on each; {shards}; memory and time are those of one rank",
            count(inputs.step.completions, "completion")
        );
    }
}

fn print_row(name: &str, cells: &[String]) {
    // What is wider than its column still stands apart.
    let cells: String = cells.iter().map(|cell| format!("  {cell:>14}")).collect();
    base::print_data!("{name:<28}{cells}");
}

type Component = (&'static str, fn(&Memory) -> u64);

/// Not all parts are there at the same time: the peak is below their sum.
fn print_memory(inputs: &PlanInputs, choices: &[(&'static str, Choice); 3]) {
    const COMPONENTS: [Component; 10] = [
        ("weights", |m| m.weights),
        ("adapters", |m| m.adapters),
        ("f32 masters", |m| m.masters),
        ("moments", |m| m.moments),
        ("reference", |m| m.reference),
        ("feature cache", |m| m.feature_cache),
        ("gradients", |m| m.gradients),
        ("activations", |m| m.activations),
        ("logits, a chunk", |m| m.logits),
        ("KV cache", |m| m.kv_cache),
    ];
    let batch = &inputs.micro_batch;
    let plans = choices.map(|(_, choice)| memory(&inputs.shape, choice, batch, &inputs.sampled));
    print_row("MiB", &choices.map(|(name, _)| name.to_owned()));
    print_row(
        "parameters trained",
        &choices.map(|(_, choice)| num_trained(&inputs.shape, choice.trained).to_string()),
    );
    for (name, of) in COMPONENTS {
        print_row(name, &plans.map(|plan| mebibytes(of(&plan))));
    }
    print_row("peak", &plans.map(|plan| mebibytes(plan.peak)));
    let other = choices.map(|(_, choice)| Choice { recompute: !choice.recompute, ..choice });
    let peaks = other.map(|choice| memory(&inputs.shape, choice, batch, &inputs.sampled).peak);
    let name = if inputs.choice.recompute { "peak, activations kept" } else { "peak, recomputed" };
    print_row(name, &peaks.map(mebibytes));
    if inputs.choice.ranks.count > 1 {
        for (name, stage) in
            [("peak, stage 0", ZeroStageSetting::Zero), ("peak, stage 2", ZeroStageSetting::Two)]
        {
            let peaks = choices.map(|(_, choice)| {
                let choice = Choice { ranks: Ranks { stage, ..choice.ranks }, ..choice };
                memory(&inputs.shape, choice, batch, &inputs.sampled).peak
            });
            print_row(name, &peaks.map(mebibytes));
        }
    }
    if plans.iter().any(|plan| plan.host > 0) {
        // On a CPU both are one memory; a plan may be made for another machine.
        print_row("in host memory besides", &plans.map(|plan| mebibytes(plan.host)));
    }
}

/// What a checkpoint takes; `size` is that of a weight in the model's files.
fn print_disk(inputs: &PlanInputs, choices: &[(&'static str, Choice); 3], size: u64) {
    let shape = &inputs.shape;
    let all = num_trained(shape, Trained::Full);
    let model = choices.map(|(_, choice)| match choice.trained {
        // Adapters are written in f32.
        trained @ Trained::Lora { .. } => 4 * num_trained(shape, trained),
        Trained::Full | Trained::FrozenVision => size * all,
    });
    let state = choices.map(|(_, choice)| {
        // Of all ranks.
        let choice = Choice { ranks: Ranks::ONE, ..choice };
        let moments = memory(shape, choice, &inputs.micro_batch, &inputs.sampled).moments;
        4 * num_trained(shape, choice.trained) + moments
    });
    base::print_data!("\na checkpoint on disk, MiB");
    print_row("the model", &model.map(mebibytes));
    print_row("what going on needs", &state.map(mebibytes));
    print_rollouts(inputs);
}

/// What completions take, where all are as long as they may be.
fn print_rollouts(inputs: &PlanInputs) {
    let rollouts = inputs.rollouts;
    let which = match rollouts.steps_kept == inputs.steps {
        true => format!("all {} steps", inputs.steps),
        false => format!("the newest {} of {} steps", rollouts.steps_kept, inputs.steps),
    };
    base::print_data!(
        "rollouts on disk: at most {} MiB for {which} (4 bytes a token), and {} MiB for their index",
        mebibytes(rollouts.step * rollouts.steps_kept),
        mebibytes(rollouts.index)
    );
}

/// Bytes of a weight in the files of the model, as its description says.
fn bytes_of_weight(folder: &Path) -> Result<u64> {
    let config = read_config(folder)?;
    let text = &config["text_config"];
    let kind = [&config["dtype"], &config["torch_dtype"], &text["dtype"]];
    let kind = kind.into_iter().find_map(|kind| kind.as_str());
    Ok(match kind {
        Some("float32") | None => 4,
        Some(_) => 2,
    })
}

fn print_fits(
    inputs: &PlanInputs,
    choices: &[(&'static str, Choice); 3],
    available: &[(String, u64)],
) {
    base::print_data!(
        "\nthe largest micro-batch that fits as one of several of a step, completions (tokens)"
    );
    for (name, bytes) in available {
        for (how, recompute) in [("kept", false), ("recomputed", true)] {
            let cells = choices.map(|(_, choice)| {
                let choice = Choice { recompute, ..choice };
                fit(inputs, choice, *bytes)
            });
            print_row(&format!("{name}, {how}"), &cells);
        }
    }
}

/// Whether `--zero_stage 3` would run, which it does as stage 2.
fn print_stage_three(inputs: &PlanInputs, available: &[(String, u64)]) {
    let ranks = inputs.choice.ranks;
    if ranks.count > 1 && ranks.stage == ZeroStageSetting::Three {
        for (name, bytes) in available {
            let said = inputs.stage_two_for_three(*bytes);
            let said = said.unwrap_or_else(|refusal| refusal.to_string());
            base::print_data!("\n{name}: {said}");
        }
    }
}

fn fit(inputs: &PlanInputs, choice: Choice, bytes: u64) -> String {
    let load = (&inputs.micro_batch, inputs.group);
    match completions_that_fit(&inputs.shape, choice, load, &inputs.sampled, bytes) {
        0 => "none".to_owned(),
        fit => {
            let batch = inputs.micro_batch.of_completions(fit, inputs.group);
            format!("{fit} ({})", batch.tokens())
        }
    }
}

/// Seconds of a step, from parts that are timed here.
fn timed(inputs: &PlanInputs, choices: &[(&'static str, Choice); 3]) -> Result<[f64; 3]> {
    let (probe, start) = (inputs.probe(), Instant::now());
    let [full, frozen, lora] = choices.map(|(_, choice)| choice);
    let costs = probe.costs(full)?;
    let costs = [(full, costs), (frozen, costs.with_frozen_tower()), (lora, probe.costs(lora)?)];
    let (tried, layers) = probe.layers();
    base::print_data!(
        "\nprobe: {:.1} s, with {tried} of {layers} text layers; a token of {} takes {:.1} ms",
        start.elapsed().as_secs_f64(),
        count(inputs.sampled.completions, "completion"),
        costs[0].1.decoded * 1e3
    );
    let work = inputs.work();
    Ok(costs.map(|(choice, of)| step_secs(&inputs.shape, choice, &work, &of, &costs[0].1)))
}

/// Seconds of a step on a card that is not here, its phases printed; none where the step does not fit.
fn predicted(
    inputs: &PlanInputs,
    choices: &[(&'static str, Choice); 3],
    card: &Card,
    graphs: bool,
) -> [Option<f64>; 3] {
    base::print_data!(
        "\npredicted for one {}, not measured: {:.0} GB/s, {:.0} TFLOP/s, decoding {}",
        card.name,
        card.bytes_per_sec() / 1e9,
        card.flop_per_sec() / 1e12,
        if graphs { "by CUDA graphs" } else { "by launches one by one" }
    );
    let steps = choices.map(|(_, choice)| {
        let needed = memory(&inputs.shape, choice, &inputs.micro_batch, &inputs.sampled).peak;
        let fits = needed <= card.usable_bytes();
        fits.then(|| predict(&inputs.shape, choice, &inputs.work(), graphs))
    });
    for index in 0..steps.iter().flatten().map(|step| step.list().len()).max().unwrap_or(0) {
        let phases = steps.map(|step| step.map(|step| step.list()[index]));
        let name = phases.iter().flatten().map(|(name, _)| *name).next().unwrap_or_default();
        let cell = |(_, demand)| format!("{:.3}", card.secs(demand));
        print_row(&format!("{name}, s"), &phases.map(|phase| phase.map_or("-".into(), cell)));
    }
    if inputs.choice.offload_optimizer || inputs.choice.offload_reference {
        base::print_data!("updates in host memory and copies to and from it are not predicted");
    }
    steps.map(|step| step.map(|step| step.secs(card)))
}

fn print_secs(
    inputs: &PlanInputs,
    choices: &[(&'static str, Choice); 3],
    secs: [Option<f64>; 3],
    per_hour: Option<f64>,
) {
    if inputs.choice.ranks.count == 1 {
        return print_step(inputs, "", secs, per_hour);
    }
    let sent = choices.map(|(_, choice)| bytes_sent(&inputs.shape, choice, &inputs.work()));
    print_row("sent by a rank a step, MiB", &sent.map(mebibytes));
    for network in NETWORKS {
        let alone = sent.map(|bytes| network.secs(bytes));
        print_row(&format!("{}, s", network.name), &alone.map(|secs| format!("{secs:.3}")));
        let mut all = secs;
        for (secs, alone) in all.iter_mut().zip(alone) {
            *secs = secs.map(|secs| secs + alone);
        }
        print_step(inputs, &format!(", {}", network.name), all, per_hour);
    }
}

/// Seconds of a step, hours and cost of the run; `over` says what ranks talk over.
fn print_step(inputs: &PlanInputs, over: &str, secs: [Option<f64>; 3], per_hour: Option<f64>) {
    let row = |name: &str, of: &dyn Fn(f64) -> String| {
        print_row(name, &secs.map(|secs| secs.map_or("does not fit".into(), of)));
    };
    row(&format!("a step{over}, s"), &|secs| format!("{secs:.3}"));
    let hours = |secs: f64| secs * inputs.steps as f64 / 3600.0;
    let name = format!("{}{over}, h", count(inputs.steps, "step"));
    row(&name, &|secs| format!("{:.2}", hours(secs)));
    if let Some(price) = per_hour {
        row(&format!("cost{over}"), &|secs| format!("{:.2}", hours(secs) * price));
    }
}

/// The card that a device names; none where it is a device of this machine.
fn card_of(device: &str) -> Result<Option<Card>> {
    let here = matches!(device, "auto" | "cpu") || device.starts_with("cuda");
    let card = Card::named(device);
    if card.is_none() && !here {
        let known = CARDS.map(|card| card.name).join(", ");
        bail!(
            "device `{device}`: expected `auto`, `cpu`, `cuda` or `cuda:N`\nhint: a plan is also made for a card that is \
             not here: {known}"
        );
    }
    Ok(card)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// All memory of this machine.
pub fn host_memory() -> Result<u64> {
    torch::machine_memory_bytes()
        .context("/proc/meminfo: no `MemTotal`\nhint: say it, as --memory 24GiB")
}
