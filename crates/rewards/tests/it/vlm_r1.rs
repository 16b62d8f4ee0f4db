//! Every reward equals VLM-R1's own functions on a generated corpus, but for the differences that are listed.
//!
//! `tools/golden/vlm_r1.py` scored the corpus; where ours is meant to differ, a case says so, what ours
//! says and why. What the reading of mathematics and of damaged JSON adds to that is listed in `reading_differences.jsonl`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use rewards::{JudgeOptions, PluginOptions, RewardInput, RewardOptions, RewardSet, family_of};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::http::{ok, serve};
use crate::{generic_options, input, rec_options};

const TOLERANCE: f64 = 1e-9;

/// Lines of each file, and the least number of scored cases in all.
const FILES: [(&str, usize); 4] = [("texts", 1600), ("boxes", 800), ("repeats", 500), ("rec", 600)];
const MIN_CASES: usize = 5000;
const MIN_CASES_PER_RULE: usize = 300;

/// What a rule says of a case.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Verdict {
    Score(f64),
    /// `error`: the solution is refused. The reference also has `nan` and `raises NAME`.
    Other(String),
}

impl Verdict {
    fn is_near(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Score(a), Self::Score(b)) => (a - b).abs() <= TOLERANCE,
            _ => self == other,
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Score(score) => write!(f, "{score}"),
            Self::Other(what) => write!(f, "{what}"),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Expected {
    Meant { reference: Verdict, ours: Verdict, why: String },
    Equal(Verdict),
}

#[derive(Debug, Deserialize)]
struct Case {
    completion: String,
    solution: String,
    tokens: Option<usize>,
    image_size: Option<[u32; 2]>,
    image_grid_thw: Option<[usize; 3]>,
    scores: BTreeMap<String, Expected>,
}

/// A case in which mathematics is read otherwise than by math-verify, or JSON than by json_repair.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
struct ReadingDifference {
    rule: String,
    completion: String,
    solution: String,
    reference: String,
    ours: String,
}

/// One that is known, and the row of the docs that judges it.
#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(flatten)]
    case: ReadingDifference,
    why: String,
}

/// The committed corpus, or a larger one of `tools/golden/vlm_r1.py`.
fn larger_corpus() -> Option<PathBuf> {
    std::env::var_os("VLM_R1_CASES").map(PathBuf::from)
}

fn committed() -> PathBuf {
    testing::golden("rewards/vlm_r1")
}

/// The rewards that the rules of the corpus mean.
struct Rules {
    accuracy: RewardSet,
    others: BTreeMap<&'static str, RewardSet>,
}

impl Rules {
    fn new() -> Self {
        // A judge without a number to give, so that its failing is what is compared.
        let reply = json!({"choices": [{"message": {"content": "no idea"}}]});
        let (url, _requests) = serve(move |_, _| ok(&reply));
        let judge = JudgeOptions {
            model: Some("wise".to_owned()),
            api_base: Some(url),
            max_failed: 1.0,
            ..JudgeOptions::default()
        };
        let options = RewardOptions {
            plugins: PluginOptions { judge, ..PluginOptions::default() },
            ..generic_options()
        };
        let build = |name: &str, options: &RewardOptions| {
            RewardSet::build(&[name.to_owned()], None, options).expect("a known reward")
        };
        let mut others: BTreeMap<_, _> =
            ["format", "length", "repetition"].map(|name| (name, build(name, &options))).into();
        for (rule, name, family) in [
            ("qwen2_5_vl/accuracy", "accuracy", family_of("qwen2_5_vl")),
            ("qwen2_5_vl/format", "format", family_of("qwen2_5_vl")),
            ("internvl/accuracy", "accuracy", family_of("internvl")),
            ("internvl/format", "format", family_of("internvl")),
            ("glm4v/accuracy", "accuracy", family_of("glm4v")),
            ("glm4v/format", "format", family_of("glm4v")),
        ] {
            others.insert(rule, build(name, &rec_options(family, 14)));
        }
        Self { accuracy: build("accuracy", &options), others }
    }

    /// `rule` is a reward, or a method of `accuracy`.
    fn score(&self, rule: &str, case: &Case) -> Verdict {
        let columns = Map::new();
        let set = self.others.get(rule);
        let row = RewardInput {
            // `length` of a list of boxes asks for its accuracy by this method.
            accu_reward_method: Some(if set.is_some() { "weighted_sum" } else { rule }),
            image_sizes: case.image_size.as_slice(),
            image_grid_thw: case.image_grid_thw.as_slice(),
            completion_tokens: case.tokens,
            ..input(&case.completion, &case.solution, &columns)
        };
        match set.unwrap_or(&self.accuracy).score(&[row]) {
            Ok(scores) => Verdict::Score(scores.per_reward[0][0].expect("a score")),
            Err(error) => {
                assert!(error.to_string().contains("solution"), "{rule}: {error}");
                Verdict::Other("error".to_owned())
            }
        }
    }
}

/// How many cases of each rule agree or differ, and why.
#[derive(Default)]
struct Tally {
    cases: BTreeMap<String, usize>,
    meant: BTreeMap<(String, String), usize>,
    worst: f64,
    maths: BTreeSet<ReadingDifference>,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, rules: &Rules, case: &Case, rule: &str, expected: &Expected) {
        *self.cases.entry(rule.to_owned()).or_default() += 1;
        let got = rules.score(rule, case);
        let (reference, ours) = match expected {
            Expected::Equal(verdict) => (verdict, verdict),
            Expected::Meant { reference, ours, why } => {
                *self.meant.entry((rule.to_owned(), why.clone())).or_default() += 1;
                (reference, ours)
            }
        };
        if got.is_near(ours) {
            if let (Verdict::Score(got), Verdict::Score(ours)) = (&got, ours) {
                self.worst = self.worst.max((got - ours).abs());
            }
        } else if ["default", "math", "repetition"].contains(&rule) {
            self.maths.insert(ReadingDifference {
                rule: rule.to_owned(),
                completion: case.completion.clone(),
                solution: case.solution.clone(),
                reference: reference.to_string(),
                ours: got.to_string(),
            });
        } else {
            self.wrong.push(format!("{rule}: {got}, expected {ours}: {case:?}"));
        }
    }

    #[allow(clippy::print_stdout, reason = "a table for the docs, on request")]
    fn print(&self) {
        println!("largest difference where none is meant: {:e}", self.worst);
        println!("| rule | cases | meant to differ |\n|---|---|---|");
        for (rule, cases) in &self.cases {
            let of_rule = self.meant.iter().filter(|((name, _), _)| name == rule);
            let mut why: Vec<String> =
                of_rule.map(|((_, why), count)| format!("{count} {why}")).collect();
            let maths = self.maths.iter().filter(|case| case.rule == *rule).count();
            if maths > 0 {
                why.push(format!("{maths} read otherwise"));
            }
            println!("| {rule} | {cases} | {} |", why.join(", "));
        }
    }
}

fn tally(folder: &Path) -> Tally {
    let rules = Rules::new();
    let mut tally = Tally::default();
    for (name, at_least) in FILES {
        let cases: Vec<Case> = testing::cases(folder.join(format!("{name}.jsonl")), at_least);
        for case in &cases {
            for (rule, expected) in &case.scores {
                tally.add(&rules, case, rule, expected);
            }
        }
    }
    tally.print();
    tally
}

#[test]
fn every_rule_equals_vlm_r1() {
    let larger = larger_corpus();
    let tally = tally(larger.as_deref().unwrap_or(&committed()));
    let shown: Vec<&String> = tally.wrong.iter().take(10).collect();
    assert!(shown.is_empty(), "{} differ: {shown:#?}", tally.wrong.len());
    assert!(tally.cases.values().sum::<usize>() >= MIN_CASES);
    for (rule, cases) in &tally.cases {
        assert!(*cases >= MIN_CASES_PER_RULE, "{rule}: {cases} cases");
    }
    if larger.is_some() {
        // Which of these are listed is not known; the printed table counts them.
        return;
    }
    assert_listed(&tally.maths);
}

/// Those found are those of `reading_differences.jsonl`, and each has a row of `docs/maths.md`.
fn assert_listed(found: &BTreeSet<ReadingDifference>) {
    let listed: Vec<Listed> = testing::read_jsonl(committed().join("reading_differences.jsonl"));
    let docs: String = ["maths.md", "rewards.md"]
        .map(|name| testing::read(testing::repository("docs").join(name)))
        .concat();
    for Listed { case, why } in &listed {
        let row = format!("| {why} |");
        assert!(docs.contains(&row), "no row `{row}` in the docs: {case:?}");
    }
    let listed = listed.into_iter().map(|listed| listed.case).collect();
    let as_lines = |cases: Vec<&ReadingDifference>| -> String {
        let line = |case| serde_json::to_string(case).expect("text") + "\n";
        cases.into_iter().map(line).collect()
    };
    let new = as_lines(found.difference(&listed).collect());
    let gone = as_lines(listed.difference(found).collect());
    assert!(
        new.is_empty() && gone.is_empty(),
        "not listed in reading_differences.jsonl:\n{new}\nlisted, but equal or absent:\n{gone}"
    );
}
