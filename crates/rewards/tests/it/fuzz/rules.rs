//! Every built-in rule, with the range that its scores keep to, and texts that are hard on each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rewards::{
    BoxUnits, OverlongOptions, PluginOptions, RewardError, RewardFamily, RewardInput,
    RewardOptions, RewardSet, accuracy_methods, family_of,
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value};

/// A reward, or a method of `accuracy`.
pub struct Rule {
    pub name: String,
    set: RewardSet,
    method: Option<&'static str>,
    range: (f64, f64),
}

/// Quotients of rounded products may end one rounding beyond.
const ROUNDING: f64 = 1e-12;

fn options(family: RewardFamily, customised: bool) -> RewardOptions {
    RewardOptions {
        family,
        task_type: customised.then(|| "rec".to_owned()),
        is_reward_customized_from_vlm_module: customised,
        patch_size: 14,
        plugins: PluginOptions::default(),
        overlong: OverlongOptions::default(),
        box_units: BoxUnits::default(),
    }
}

fn rule(name: &str, options: &RewardOptions, method: Option<&'static str>, label: String) -> Rule {
    let set = RewardSet::build(&[name.to_owned()], None, options).expect("a built-in reward");
    Rule { name: label, set, method, range: range(name) }
}

/// What the documents say of a reward's scores.
fn range(reward: &str) -> (f64, f64) {
    match reward {
        "giou" | "diou" => (-1.0, 1.0),
        "accuracy" | "format" | "point_in_box" | "click" | "count" | "json_valid" => (0.0, 1.0),
        "length" => (-0.5, 1.0),
        "overlong" | "repetition" => (-1.0, 0.0),
        other => panic!("say here which scores `{other}` gives"),
    }
}

/// Names of the built-in rewards, as the message about an unknown one lists them.
fn reward_names() -> Vec<String> {
    let error =
        RewardSet::build(&["?".to_owned()], None, &options(family_of("glm4v"), false)).err();
    let Some(RewardError::UnknownReward { known, .. }) = error else {
        panic!("`?` is no reward");
    };
    let names = known.split(['`', ',', ' ']).map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// All rules but those that ask a language model.
pub fn rules() -> Vec<Rule> {
    let generic = options(family_of("glm4v"), false);
    let mut rules = Vec::new();
    for method in accuracy_methods().filter(|method| *method != "llm") {
        rules.push(rule("accuracy", &generic, Some(method), format!("accuracy:{method}")));
    }
    for name in reward_names() {
        if name != "accuracy" && name != "llm" {
            rules.push(rule(&name, &generic, None, name.clone()));
        }
    }
    for (family, label) in [
        (family_of("qwen2_5_vl"), "qwen"),
        (family_of("internvl"), "internvl"),
        (family_of("glm4v"), "glm"),
    ] {
        for name in ["accuracy", "format"] {
            rules.push(rule(name, &options(family, true), None, format!("rec {name}:{label}")));
        }
    }
    let names = ["giou", "click"].iter();
    rules.extend(names.map(|name| {
        rule(name, &options(family_of("qwen2_5_vl"), false), None, format!("{name}:qwen"))
    }));
    rules
}

impl Rule {
    /// How much time of a core the rule took over a row.
    ///
    /// # Errors
    /// Says what is wrong with how it scored.
    pub fn run(&self, completion: &str, solution: &str, explain: bool) -> Result<Duration, String> {
        let columns = Map::new();
        let row = input(completion, solution, self.method, &columns);
        let start = cpu_time();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let checked = self.set.check(0, solution, self.method);
            let scores = self.set.score(&[row]);
            if explain && scores.is_ok() {
                self.set.explain(&row).map_err(|error| format!("explain: {error}"))?;
            }
            match (checked, scores) {
                (Err(_), _) => Ok(None),
                (Ok(()), Ok(scores)) => Ok(scores.per_reward[0][0]),
                (Ok(()), Err(error)) => Err(format!("an error for a good row: {error}")),
            }
        }));
        let took = cpu_time() - start;
        let score = outcome.map_err(|panic| panic_text(panic.as_ref()))??;
        let (low, high) = self.range;
        match score {
            Some(score) if !(low - ROUNDING..=high + ROUNDING).contains(&score) => {
                Err(format!("scored {score}, expected {low} to {high}"))
            }
            _ => Ok(took),
        }
    }
}

/// Time that this thread ran: other programs do not count.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or_default(),
        time.tv_nsec.try_into().unwrap_or_default(),
    )
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

fn input<'a>(
    completion: &'a str,
    solution: &'a str,
    accu_reward_method: Option<&'a str>,
    columns: &'a Map<String, Value>,
) -> RewardInput<'a> {
    RewardInput {
        completion,
        solution,
        problem: Some("Where is the cat?"),
        accu_reward_method,
        images: &[],
        image_sizes: &[[640, 480]],
        image_grid_thw: &[[1, 34, 46]],
        columns,
        sample: Some("train.jsonl:1"),
        step: Some(1),
        completion_tokens: Some(completion.len() / 4),
    }
}

/// True answers of up to 1,000 characters that bring each rule to its work.
pub fn truths() -> Vec<String> {
    let item = |n: usize| format!("{{\"bbox_2d\": [{n}, 2, {}, 40], \"label\": \"cat\"}}", n + 30);
    let boxes: Vec<String> = (0..18).map(item).collect();
    vec![
        "<answer> [1, 2, 30, 40] </answer>".to_owned(),
        format!("<answer>```json\n[{}]\n```</answer>", boxes.join(",")),
        format!("<answer>{}</answer>", "the red cat 12 ".repeat(65)),
        format!("<answer>$\\{{{}1\\}}$</answer>", "1,".repeat(480)),
        "<answer>$\\frac{1}{2} + \\sqrt{2}$</answer>".to_owned(),
        "<answer>B</answer>".to_owned(),
        "<answer>yes</answer>".to_owned(),
    ]
}

/// Pieces whose repetition is hard on one search or another, with what stands around them.
pub fn families() -> impl Iterator<Item = (String, [&'static str; 2])> {
    const PIECES: &[&str] = &[
        "<answer>",
        "</answer>",
        "<answer>1</answer>",
        "<think>",
        "</think>",
        "<think></think><answer>",
        "```json",
        "```json\n[",
        "```json\n[]\n```",
        "```",
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "[1,",
        "[1, 2, 3, 4]",
        "[1, 2, 3, 4], ",
        "{\"a\":",
        "\"",
        "'",
        "\\",
        "\\\"",
        "\\boxed{",
        "\\boxed{1}",
        "\\boxed{1} ",
        "\\fbox{",
        "\\boxed ",
        "$",
        "$$",
        "$1$ ",
        "$1$,",
        "$x$ and ",
        "\\(",
        "\\(1\\)",
        "\\[",
        "1",
        "9",
        "1 ",
        "1,",
        "1,000",
        "-",
        "1.",
        "1/",
        "1+",
        "1=",
        "=",
        "^",
        "^{",
        "_{",
        "\\frac",
        "\\frac{1}{2}",
        "\\frac12",
        "\\sqrt",
        "\\sqrt2",
        "\\text{",
        "\\text{a}",
        "\\text{ ",
        "\\left(",
        "and ",
        "answer",
        "answer: ",
        "answer is ",
        "final answer is ",
        "final answer is $1$. ",
        "yes",
        "no",
        "A. ",
        "答案A.",
        "click",
        "click(",
        "click 1 ",
        " ",
        "\n",
        "\r",
        " \n",
        "\t",
        "é",
        "٣",
        "👩‍👩‍👧",
        "İ",
        ".",
        "%",
        "$\\zzz$ ",
        "|",
        "a",
        "ab ",
        "{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"cat\"}, ",
        "{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"",
        "$\\sum_{k=1}^{9999} k$ ",
        "(x)_{",
        "^(",
        "sqrt(",
        "\\frac{",
        "\\{1,2\\}",
        "x<",
        "f(",
        "\\begin{pmatrix}",
        " [1] ",
        "// ",
        "/*",
        "null,",
        "1e9,",
        "e",
        "_",
        "1_",
        "-1.1",
    ];
    const AROUND: [[&str; 2]; 6] = [
        ["", ""],
        ["<answer>", "</answer>"],
        ["<think></think><answer>", ""],
        ["<answer>```json\n[", "]\n```</answer>"],
        ["$", "$"],
        ["\\boxed{", "}"],
    ];
    let pieces = PIECES.iter();
    pieces.flat_map(|piece| AROUND.map(|around| ((*piece).to_owned(), around)))
}

/// A member of a family, of about `length` characters.
pub fn member(piece: &str, around: [&str; 2], length: usize) -> String {
    let body = piece.repeat(length / piece.chars().count());
    format!("{}{body}{}", around[0], around[1])
}
