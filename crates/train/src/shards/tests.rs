//! Ranks in threads: what each stage makes of the same gradients, and what checkpoints keep of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use config::ZeroStage;
use models::{Master, Parameter, Parameters, Part};
use tch::{Device, Kind, Tensor};
use torch::ranks::Group;
use torch::{Bf16Master, Distribution, fill_random};

use super::saved::SavedTensors;
use crate::TrainError;
use crate::optimizer::{FILES, Optimizer, OptimizerOptions};

/// A matrix that is cut over buckets and one that has moments in 8 bits, vectors, and a matrix that is cut within a block.
const SHAPES: [&[i64]; 6] = [&[90, 70], &[300], &[3, 100], &[5000], &[40, 128], &[7]];
/// Numbers of a bucket.
const CAPACITY: i64 = 4096;
const LR: f64 = 1e-2;

/// Runs `work` on each of `size` ranks.
pub(crate) fn on_ranks<T: Send>(size: usize, work: impl Fn(Rc<Group>) -> T + Sync) -> Vec<T> {
    let groups = Group::of_threads(size, Duration::from_secs(60));
    let work = &work;
    thread::scope(|scope| {
        let run = |group| {
            scope.spawn(move || {
                tch::set_num_threads(1);
                work(Rc::new(group))
            })
        };
        let threads: Vec<_> = groups.into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// How weights and moments are held.
#[derive(Clone, Copy, Debug)]
struct Held {
    kind: Kind,
    on_host: bool,
    in_8bit: bool,
}

const F32: Held = Held { kind: Kind::Float, on_host: false, in_8bit: false };
const BF16: Held = Held { kind: Kind::BFloat16, on_host: false, in_8bit: false };
const ALL: [Held; 5] = [
    F32,
    BF16,
    Held { in_8bit: true, ..F32 },
    Held { in_8bit: true, ..BF16 },
    Held { kind: Kind::Half, ..F32 },
];
const OFFLOADED: [Held; 2] = [Held { on_host: true, ..F32 }, Held { on_host: true, ..BF16 }];

impl Held {
    fn options(self) -> OptimizerOptions {
        OptimizerOptions {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            max_grad_norm: 1.0,
            in_8bit: self.in_8bit,
        }
    }

    fn parameters(self) -> Parameters {
        let list = SHAPES.iter().zip(0..).map(|(shape, key)| self.parameter(shape, key));
        Parameters { list: list.collect(), ..Parameters::default() }
    }

    fn parameter(self, shape: &[i64], key: u64) -> Parameter {
        let exact = draw(shape, key);
        let value = torch::round_to(&exact, self.kind).unwrap().copy().set_requires_grad(true);
        let master = match self.kind {
            Kind::Float if !self.on_host => Master::Value,
            Kind::BFloat16 => {
                let residual = Tensor::zeros(shape, (Kind::Int16, Device::Cpu));
                let host = self.on_host.then(|| value.detach().copy());
                let held = host.as_ref().unwrap_or(&value);
                Bf16Master { value: held, residual: &residual }.store(&exact).unwrap();
                Master::Bf16 { residual, host }
            }
            _ => Master::F32(exact),
        };
        let (name, part) = (format!("weight.{key}"), Part::Language);
        Parameter { name, part, is_adapter: false, value, master }
    }
}

fn draw(shape: &[i64], key: u64) -> Tensor {
    let tensor = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    fill_random(&tensor, key, Distribution::Uniform(-0.1, 0.1)).unwrap();
    tensor
}

/// Adds to the gradient of a parameter as a pass does.
fn backward(parameter: &Parameter, gradient: &Tensor) {
    let value = &parameter.value;
    (value * gradient.to_kind(value.kind())).sum(value.kind()).backward();
}

/// The gradient of `parameter` in a micro-batch of a step.
fn gradient(step: u64, micro_batch: u64, parameter: usize) -> Tensor {
    draw(SHAPES[parameter], 1000 + 100 * step + 10 * micro_batch + parameter as u64)
}

fn optimizer(
    held: Held,
    parameters: &mut Parameters,
    group: &Rc<Group>,
    stage: ZeroStage,
) -> Optimizer {
    let ranks = (group.clone(), stage);
    Optimizer::with_buckets(parameters, held.options(), ranks, CAPACITY).unwrap()
}

/// A state as one rank has it, from what ranks hold: flat tensors by key.
type Whole = BTreeMap<String, Tensor>;

fn whole(of_ranks: Vec<Vec<(String, Tensor)>>) -> Whole {
    let mut pieces: BTreeMap<String, BTreeMap<i64, Tensor>> = BTreeMap::new();
    for (name, tensor) in of_ranks.into_iter().flatten() {
        let (key, start) = match name.rsplit_once('@') {
            Some((key, start)) => (key.to_owned(), start.parse().unwrap()),
            None => (name, 0),
        };
        pieces.entry(key).or_default().insert(start, tensor.reshape([-1]));
    }
    let cat =
        |parts: BTreeMap<i64, Tensor>| Tensor::cat(&parts.into_values().collect::<Vec<_>>(), 0);
    pieces.into_iter().map(|(key, parts)| (key, cat(parts))).collect()
}

fn copies(state: Vec<(String, Tensor)>) -> Vec<(String, Tensor)> {
    state.into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
}

/// Bit for bit, of numbers of any type.
fn is_same(a: &Tensor, b: &Tensor) -> bool {
    let bytes = |x: &Tensor| {
        let mut bytes = vec![0u8; x.numel() * x.kind().elt_size_in_bytes()];
        x.contiguous().copy_data_u8(&mut bytes, x.numel());
        bytes
    };
    a.size() == b.size() && a.kind() == b.kind() && bytes(a) == bytes(b)
}

fn assert_same(a: &Whole, b: &Whole, case: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{case}");
    for (key, tensor) in a {
        assert!(is_same(tensor, &b[key]), "{case}: {key}");
    }
}

/// What a run ends with on a rank.
struct End {
    norms: Vec<f64>,
    values: Vec<Tensor>,
    state: Vec<(String, Tensor)>,
}

/// Three steps; `has` says whether a rank has a gradient of a parameter in a micro-batch.
fn run(
    held: Held,
    group: &Rc<Group>,
    stage: ZeroStage,
    micro_batches: u64,
    has: &(dyn Fn(u64, usize) -> bool + Sync),
) -> End {
    let mut parameters = held.parameters();
    let mut optimizer = optimizer(held, &mut parameters, group, stage);
    let mut norms = Vec::new();
    for step in 0..3 {
        // Micro-batch m is that of rank m % size.
        let rounds = micro_batches.div_ceil(group.size() as u64);
        for round in 0..rounds {
            let micro_batch = round * group.size() as u64 + group.rank() as u64;
            for (index, parameter) in parameters.list.iter().enumerate() {
                if micro_batch < micro_batches && has(micro_batch, index) {
                    backward(parameter, &gradient(step, micro_batch, index));
                }
            }
            optimizer.collect(&parameters).unwrap();
            // That of the last micro-batch is left to the step.
            if round + 1 < rounds {
                optimizer.reduce_round(&parameters).unwrap();
            }
        }
        norms.push(optimizer.step(&parameters, LR).unwrap());
    }
    let values = parameters.list.iter().map(|p| p.value.detach().copy()).collect();
    End { norms, values, state: copies(optimizer.state(&parameters)) }
}

fn run_on(
    size: usize,
    held: Held,
    stage: ZeroStage,
    micro_batches: u64,
    has: impl Fn(u64, usize) -> bool + Sync,
) -> (Vec<f64>, Vec<Tensor>, Whole) {
    let ends = on_ranks(size, |group| run(held, &group, stage, micro_batches, &has));
    let mut states = Vec::new();
    let mut first: Option<(Vec<f64>, Vec<Tensor>)> = None;
    for End { norms, values, state } in ends {
        states.push(state);
        match &first {
            None => first = Some((norms, values)),
            Some((first_norms, first_values)) => {
                assert_eq!(&norms, first_norms);
                assert!(values.iter().zip(first_values).all(|(a, b)| is_same(a, b)));
            }
        }
    }
    let (norms, values) = first.unwrap();
    (norms, values, whole(states))
}

#[test]
fn stages_are_equal_bit_for_bit() {
    for (size, held) in [(2, &ALL[..]), (3, &ALL[1..2]), (4, &ALL[3..4])] {
        for &held in held {
            let on = |stage| run_on(size, held, stage, size as u64, |_, _| true);
            let (plain, sharded) = (on(ZeroStage::Zero), on(ZeroStage::Two));
            let case = format!("{size} {held:?}");
            assert_eq!(plain.0, sharded.0, "{case}");
            assert!(plain.0.iter().all(|norm| *norm > 1.0), "no gradient was clipped: {case}");
            assert!(plain.1.iter().zip(&sharded.1).all(|(a, b)| is_same(a, b)), "{case}");
            assert_same(&plain.2, &sharded.2, &case);
        }
    }
}

#[test]
fn where_shards_lie_changes_nothing() {
    for (held, offloaded) in [F32, BF16].into_iter().zip(OFFLOADED) {
        let on = |held| run_on(3, held, ZeroStage::Two, 6, |_, _| true);
        let (plain, offloaded) = (on(held), on(offloaded));
        assert_eq!(plain.0, offloaded.0);
        assert_same(&plain.2, &offloaded.2, &format!("{held:?}"));
    }
}

/// One rank has all gradients, so that sums are exact; without clipping the norm does not matter.
#[test]
fn sharded_updates_are_those_of_one_rank_bit_for_bit() {
    for held in ALL.into_iter().chain(OFFLOADED) {
        for size in [2, 3] {
            let ends = on_ranks(size, |group| {
                let mut parameters = held.parameters();
                let options = OptimizerOptions { max_grad_norm: 0.0, ..held.options() };
                let ranks = (group.clone(), ZeroStage::Two);
                let mut optimizer =
                    Optimizer::with_buckets(&mut parameters, options, ranks, CAPACITY).unwrap();
                assert!(optimizer.is_sharded());
                for step in 0..3 {
                    for (index, parameter) in parameters.list.iter().enumerate() {
                        if group.rank() == size - 1 {
                            backward(parameter, &gradient(step, 0, index));
                        }
                    }
                    optimizer.step(&parameters, LR).unwrap();
                }
                let exact = |p| optimizer.exact_weight(p).unwrap().detach().copy();
                let exact: Vec<Tensor> = parameters.list.iter().map(exact).collect();
                (exact, copies(optimizer.state(&parameters)))
            });
            let (exact, states): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
            let state = whole(states);
            let alone = on_ranks(1, |group| {
                let mut parameters = held.parameters();
                let options = OptimizerOptions { max_grad_norm: 0.0, ..held.options() };
                let mut optimizer =
                    Optimizer::new(&mut parameters, options, group, ZeroStage::Zero).unwrap();
                for step in 0..3 {
                    for (index, parameter) in parameters.list.iter().enumerate() {
                        backward(parameter, &gradient(step, 0, index));
                    }
                    optimizer.step(&parameters, LR).unwrap();
                }
                let list = parameters.list.iter();
                let exact: Vec<Tensor> = list.map(|p| p.master_weight().unwrap().copy()).collect();
                (exact, copies(optimizer.state(&parameters)))
            });
            let case = format!("{size} {held:?}");
            let (expected, expected_state) = alone.into_iter().next().unwrap();
            assert_same(&state, &whole(vec![expected_state]), &case);
            for exact in exact {
                assert!(exact.iter().zip(&expected).all(|(a, b)| is_same(a, b)), "{case}");
            }
        }
    }
}

/// Micro-batches that ranks share out give what one rank makes of all, to rounding: also where there are fewer than ranks, and where a weight
/// has a gradient in some of them alone.
#[test]
fn sums_of_ranks_are_those_of_one() {
    let some = |micro_batch: u64, parameter: usize| parameter != 4 || micro_batch == 1;
    for micro_batches in [2, 7] {
        let expected = run_on(1, F32, ZeroStage::Zero, micro_batches, some);
        for (size, stage) in
            [(2, ZeroStage::Zero), (3, ZeroStage::Zero), (2, ZeroStage::Two), (4, ZeroStage::Two)]
        {
            let got = run_on(size, F32, stage, micro_batches, some);
            let case = format!("{size} {stage:?} {micro_batches}");
            for (a, b) in got.0.iter().zip(&expected.0) {
                assert!((a / b - 1.0).abs() < 1e-6, "{case}: {a} {b}");
            }
            for (key, tensor) in &expected.2 {
                let distance = (&got.2[key] - tensor).norm() / tensor.norm();
                assert!(f64::try_from(distance).unwrap() < 1e-6, "{case}: {key}");
            }
        }
    }
}

#[test]
fn a_weight_without_a_gradient_anywhere_keeps_value_and_moments() {
    for stage in [ZeroStage::Zero, ZeroStage::Two] {
        let start = F32.parameters();
        let (_, values, state) = run_on(3, F32, stage, 2, |_, parameter| parameter % 2 == 0);
        for (index, (value, parameter)) in values.iter().zip(&start.list).enumerate() {
            let name = &parameter.name;
            let is_kept = index % 2 == 1;
            assert_eq!(is_same(value, &parameter.value.detach()), is_kept, "{stage:?} {name}");
            let step = f64::try_from(state[&format!("step/{name}")].get(0)).unwrap();
            assert_eq!(step, if is_kept { 0.0 } else { 3.0 });
            let moment = f64::try_from(state[&format!("exp_avg/{name}")].norm()).unwrap();
            assert_eq!(moment == 0.0, is_kept);
        }
    }
}

#[test]
fn what_is_not_finite_on_one_rank_is_refused_on_all() {
    for stage in [ZeroStage::Zero, ZeroStage::Two] {
        let held = on_ranks(3, |group| {
            let mut parameters = BF16.parameters();
            let mut optimizer = optimizer(BF16, &mut parameters, &group, stage);
            let before = copies(optimizer.state(&parameters));
            let (rank, list) = (group.rank(), &parameters.list);
            backward(&list[0], &gradient(0, rank as u64, 0));
            if rank == 1 {
                backward(&list[4], &(gradient(0, 0, 4) * f64::NAN));
            }
            let error = optimizer.step(&parameters, LR).unwrap_err();
            let TrainError::NonFinite(cause) = error else { panic!("{error}") };
            assert_eq!(cause.weights, ["weight.4"]);
            let after = optimizer.state(&parameters);
            assert!(before.iter().zip(&after).all(|(a, b)| is_same(&a.1, &b.1)), "{stage:?}");
            // Nothing of it is left for the next step.
            optimizer.discard(&parameters).unwrap();
            optimizer.step(&parameters, LR).unwrap()
        });
        assert_eq!(held, [0.0; 3]);
    }
}

#[test]
fn what_was_collected_before_a_failed_pass_stays() {
    let norms = on_ranks(2, |group| {
        let mut parameters = F32.parameters();
        let mut optimizer = optimizer(F32, &mut parameters, &group, ZeroStage::Two);
        backward(&parameters.list[2], &Tensor::ones([3, 100], (Kind::Float, Device::Cpu)));
        optimizer.collect(&parameters).unwrap();
        backward(&parameters.list[2], &Tensor::ones([3, 100], (Kind::Float, Device::Cpu)));
        optimizer.forget_pass(&parameters).unwrap();
        backward(&parameters.list[2], &Tensor::ones([3, 100], (Kind::Float, Device::Cpu)));
        optimizer.collect(&parameters).unwrap();
        optimizer.step(&parameters, 0.0).unwrap()
    });
    // 300 numbers that are 2 on each of 2 ranks.
    assert_eq!(norms, [16.0 * 300f64; 2].map(f64::sqrt));
}

#[test]
fn exact_weights_that_each_rank_would_have_in_host_memory_are_refused() {
    on_ranks(2, |group| {
        for held in OFFLOADED {
            let mut parameters = held.parameters();
            let made =
                Optimizer::new(&mut parameters, held.options(), group.clone(), ZeroStage::Zero);
            let error = made.err().unwrap().to_string();
            for said in ["offload_optimizer", "2 ranks", "--zero_stage 2"] {
                assert!(error.contains(said), "{error}");
            }
        }
    });
}

/// Trains on 4 ranks and writes a checkpoint; returns the state.
fn write(folder: &Path, held: Held, stage: ZeroStage) -> Whole {
    let states = on_ranks(4, |group| {
        let mut parameters = held.parameters();
        let mut optimizer = optimizer(held, &mut parameters, &group, stage);
        for (index, parameter) in parameters.list.iter().enumerate() {
            backward(parameter, &gradient(0, group.rank() as u64, index));
        }
        optimizer.step(&parameters, LR).unwrap();
        if stage == ZeroStage::Two || group.rank() == 0 {
            let written = optimizer.write(&parameters, folder).unwrap();
            assert_eq!(written.len(), if stage == ZeroStage::Two { 4 } else { 1 });
            let again = tempfile::tempdir().unwrap();
            for file in written {
                let tensors: Vec<_> =
                    torch::read_tensors(&file.path).unwrap().into_iter().collect();
                let again = torch::write_tensors(&again.path().join("again"), &tensors).unwrap();
                assert_eq!((file.bytes, file.crc32c), (again.bytes, again.crc32c));
            }
        }
        copies(optimizer.state(&parameters))
    });
    whole(states)
}

/// The state and values of `size` ranks that restore a checkpoint.
fn restore(folder: &Path, size: usize, held: Held, stage: ZeroStage) -> (Whole, Vec<Tensor>) {
    let ends = on_ranks(size, |group| {
        let mut parameters = held.parameters();
        parameters.list.iter().for_each(|p| drop(p.value.detach().zero_()));
        let mut optimizer = optimizer(held, &mut parameters, &group, stage);
        let saved = SavedTensors::open(folder, FILES, "none").unwrap();
        optimizer.restore(&parameters, &saved).unwrap();
        optimizer.share_weights(&parameters).unwrap();
        let values: Vec<Tensor> = parameters.list.iter().map(|p| p.value.detach().copy()).collect();
        (copies(optimizer.state(&parameters)), values)
    });
    let (states, mut values): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
    let first = values.swap_remove(0);
    for other in &values {
        assert!(first.iter().zip(other).all(|(a, b)| is_same(a, b)));
    }
    (whole(states), first)
}

#[test]
fn any_number_of_ranks_restores_what_four_wrote() {
    let stages = [ZeroStage::Zero, ZeroStage::Two];
    for held in [ALL[1], ALL[2], ALL[4]] {
        for written_at in stages {
            let folder = tempfile::tempdir().unwrap();
            let expected = write(folder.path(), held, written_at);
            let is_single = folder.path().join("optimizer.safetensors").exists();
            assert_eq!(is_single, written_at == ZeroStage::Zero);
            let read_at = [(1, ZeroStage::Zero), (2, ZeroStage::Two), (3, written_at)];
            for (size, stage) in read_at {
                let (got, values) = restore(folder.path(), size, held, stage);
                let case = format!("{held:?} {written_at:?} on {size} at {stage:?}");
                assert_same(&expected, &got, &case);
                for (index, value) in values.iter().enumerate() {
                    let weight = &expected[&format!("weight/weight.{index}")];
                    let expected = weight.to_kind(held.kind).view(SHAPES[index]);
                    assert!(is_same(value, &expected), "{case}: {index}");
                }
            }
        }
    }
}

#[test]
fn damaged_pieces_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), F32, ZeroStage::Two);
    let open = || SavedTensors::open(folder.path(), FILES, "what to do");
    let error_of = |key: &str, shape: &[i64]| {
        let numbers = shape.iter().product();
        open().and_then(|saved| saved.read(key, shape, (0, numbers))).unwrap_err().to_string()
    };
    let says = |error: String, parts: &[&str]| {
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    says(error_of("exp_avg/weight.9", &[7]), &["exp_avg/weight.9", "hint: what to do"]);
    says(error_of("exp_avg/weight.5", &[8]), &["exp_avg/weight.5", "[8]", "7 numbers"]);

    let index = folder.path().join("optimizer.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    let listed: super::pieces::Index = serde_json::from_str(&text).unwrap();
    let (start, _, file) = listed["exp_avg/weight.0"][1].clone();
    let mut gap = listed.clone();
    gap.get_mut("exp_avg/weight.0").unwrap().remove(1);
    std::fs::write(&index, serde_json::to_string(&gap).unwrap()).unwrap();
    let missing = start.to_string();
    says(error_of("exp_avg/weight.0", SHAPES[0]), &["index.json", "exp_avg/weight.0", &missing]);
    std::fs::write(&index, text).unwrap();

    // A piece of another run, and one that is gone.
    let path = folder.path().join(&file);
    let mut tensors: Vec<(String, Tensor)> =
        torch::read_tensors(&path).unwrap().into_iter().collect();
    let name = format!("exp_avg/weight.0@{start}");
    let place = tensors.iter().position(|(found, _)| *found == name).unwrap();
    tensors[place].1 = tensors[place].1.narrow(0, 0, 17);
    torch::write_tensors(&path, &tensors).unwrap();
    says(error_of("exp_avg/weight.0", SHAPES[0]), &[&file, &name, "17 numbers"]);
    tensors[place].1 =
        Tensor::full(listed["exp_avg/weight.0"][1].1, f64::NAN, (Kind::Float, Device::Cpu));
    torch::write_tensors(&path, &tensors).unwrap();
    says(error_of("exp_avg/weight.0", SHAPES[0]), &[&file, &name, "not finite"]);
    std::fs::remove_file(&path).unwrap();
    says(error_of("exp_avg/weight.0", SHAPES[0]), &[&file]);
}

#[test]
fn a_piece_that_cannot_be_written_fails_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere");
    let errors = on_ranks(3, |group| {
        let mut parameters = F32.parameters();
        let optimizer = optimizer(F32, &mut parameters, &group, ZeroStage::Two);
        let folder = if group.rank() == 1 { nowhere.as_path() } else { folder.path() };
        optimizer.write(&parameters, folder).unwrap_err().to_string()
    });
    assert!(errors[0].contains("rank 1") && errors[0].contains("nowhere"), "{}", errors[0]);
    assert!(errors[1].contains("nowhere") && errors[2] == errors[0], "{errors:?}");
}

#[test]
fn folders_that_ranks_do_not_share_are_noticed() {
    let errors = on_ranks(2, |group| {
        let mut parameters = F32.parameters();
        let optimizer = optimizer(F32, &mut parameters, &group, ZeroStage::Two);
        let folder = tempfile::tempdir().unwrap();
        optimizer.write(&parameters, folder.path()).unwrap_err().to_string()
    });
    for error in errors {
        for said in ["rank 1 wrote", "rank 0 finds none", "--output_dir"] {
            assert!(error.contains(said), "{error}");
        }
    }
}

/// Bytes of live tensors, counted in the whole process: tests beside this one have a few MB at most.
#[test]
fn a_rank_holds_its_share() {
    const NUMBERS: u64 = 16 << 20;
    const RANKS: u64 = 4;
    let live = || torch::live_bytes(Device::Cpu).unwrap().now;
    let before = live();
    let counts = on_ranks(RANKS as usize, |group| {
        let shapes = [[2048, 2048], [1024, 2048], [4096, 2048], [1024, 2048]];
        let list = shapes.iter().zip(0..).map(|(shape, key)| BF16.parameter(shape, key));
        let mut parameters = Parameters { list: list.collect(), ..Parameters::default() };
        let ranks = (group.clone(), ZeroStage::Two);
        let mut optimizer =
            Optimizer::with_buckets(&mut parameters, BF16.options(), ranks, 3 << 20).unwrap();
        assert_eq!(optimizer.num_trainable(&parameters) as u64, NUMBERS);
        for parameter in &parameters.list {
            parameter.value.sum(Kind::BFloat16).backward();
        }
        optimizer.reduce_round(&parameters).unwrap();
        let counted = || {
            group.exchange(Vec::new()).unwrap();
            let count = live() - before;
            group.exchange(Vec::new()).unwrap();
            count
        };
        let with_sums = counted();
        optimizer.step(&parameters, LR).unwrap();
        (with_sums, counted())
    });
    // Whole values; residuals, moments and sums once.
    let values = 2 * NUMBERS * RANKS;
    for (with_sums, after) in counts {
        for (got, expected) in [(with_sums, values + 14 * NUMBERS), (after, values + 10 * NUMBERS)]
        {
            let ratio = got as f64 / expected as f64;
            assert!((ratio - 1.0).abs() < 0.05, "{got} bytes, expected {expected}");
        }
    }
}
