//! Ranks in threads that share out a whole model: what they save, and the reference.

use std::path::Path;
use std::rc::Rc;

use config::{ColonList, GrpoConfig, ZeroStage};
use models::{
    AdapterSource, LoadOptions, LoraOptions, Targets, TrainedParts, VisionLanguageModel,
    load_model, load_with_adapter,
};
use tch::{Device, Kind, Tensor, no_grad};
use torch::ranks::Group;

use super::saved::SavedTensors;
use super::tests::on_ranks;
use crate::optimizer::{Optimizer, OptimizerOptions};
use crate::policy;
use crate::reference::Reference;
use crate::settings::Settings;

const NAME: &str = "nested";

fn settings(offloads: bool) -> Settings {
    let config = GrpoConfig::default().with(|c| {
        c.data.data_file_paths = ColonList("rows.jsonl".into());
        c.rollout.offload_reference = offloads;
        c.machine.device = "cpu".into();
    });
    Settings::try_from(&config).unwrap()
}

fn model(kind: Kind, has_adapters: bool, trained: TrainedParts) -> Box<dyn VisionLanguageModel> {
    let options = LoadOptions { kind, device: Device::Cpu, trained };
    let folder = testing::checkpoint(NAME);
    if !has_adapters {
        return load_model(&folder, options).unwrap();
    }
    let targets = Targets::new(&[], false).unwrap();
    let lora = LoraOptions { rank: 4, alpha: 8.0, dropout: 0.0, targets, seed: 1 };
    load_with_adapter(&folder, options, AdapterSource::New(&lora)).unwrap()
}

/// One update by gradients that rank 0 alone has.
fn updated(
    kind: Kind,
    has_adapters: bool,
    group: Rc<Group>,
) -> (Box<dyn VisionLanguageModel>, Optimizer) {
    let mut model = model(kind, has_adapters, TrainedParts::ALL);
    // The norm of one rank is rounded otherwise.
    let options = OptimizerOptions { max_grad_norm: 0.0, ..settings(false).optimizer() };
    let (is_first, stage) = (group.rank() == 0, ZeroStage::Two);
    let mut optimizer = Optimizer::new(model.parameters_mut(), options, group, stage).unwrap();
    let parameters = model.parameters();
    if is_first {
        for parameter in parameters.list.iter().filter(|p| p.value.requires_grad()) {
            parameter.value.square().sum(parameter.value.kind()).backward();
        }
    }
    optimizer.step(parameters, 1e-2).unwrap();
    (model, optimizer)
}

#[test]
fn ranks_save_the_model_that_one_saves() {
    let source = testing::checkpoint(NAME);
    for (kind, has_adapters) in
        [(Kind::Float, false), (Kind::BFloat16, false), (Kind::BFloat16, true)]
    {
        let save = |group: Rc<Group>, target: &Path| {
            let is_first = group.rank() == 0;
            let (model, optimizer) = updated(kind, has_adapters, group);
            let both = (model.as_ref(), &optimizer);
            if is_first {
                policy::save(both, NAME, &source, target).unwrap().len()
            } else {
                policy::help_to_save(both, &source).unwrap();
                0
            }
        };
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for (size, folder) in [1, 3].into_iter().zip(&folders) {
            let written = on_ranks(size, |group| save(group, folder.path()));
            assert!(written[0] > 0 && written[1..].iter().all(|&files| files == 0));
            assert_eq!(folder.path().join("adapter_model.safetensors").exists(), has_adapters);
        }
        for entry in std::fs::read_dir(folders[0].path()).unwrap() {
            let name = entry.unwrap().file_name();
            let [alone, shared] =
                folders.each_ref().map(|folder| std::fs::read(folder.path().join(&name)).unwrap());
            assert!(alone == shared, "{kind:?} {name:?}");
        }
    }
}

/// Adapters are small: each rank may have all of their exact weights in host memory.
#[test]
fn adapters_in_host_memory_are_trained_at_stage_0() {
    let norms = on_ranks(2, |group| {
        let trained = TrainedParts { masters_on_host: true, ..TrainedParts::ALL };
        let mut model = model(Kind::BFloat16, true, trained);
        let options = settings(false).optimizer();
        let rank = group.rank();
        let mut optimizer =
            Optimizer::new(model.parameters_mut(), options, group, ZeroStage::Zero).unwrap();
        let adapters = model.parameters().list.iter().filter(|p| p.is_adapter);
        if rank == 1 {
            adapters.for_each(|p| p.value.sum(p.value.kind()).backward());
        }
        optimizer.step(model.parameters(), 1e-2).unwrap()
    });
    assert!(norms[0] > 1.0 && norms[0] == norms[1], "{norms:?}");
}

fn reference(policy: &dyn VisionLanguageModel, offloads: bool, group: Rc<Group>) -> Reference {
    let folder = testing::checkpoint(NAME);
    Reference::load(&folder, &settings(offloads), policy, (group, ZeroStage::Two)).unwrap()
}

fn embedded(model: &dyn VisionLanguageModel) -> Tensor {
    no_grad(|| model.embed_tokens(&Tensor::from_slice(&[1i64, 2, 5])).copy())
}

/// The reference moves, is written by two ranks and restored by other numbers of them, with the weights on the device or in host memory.
#[test]
fn a_reference_in_shards_is_the_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let states = |size: usize, offloads: bool, is_restored: bool| {
        let all = on_ranks(size, |group| {
            let kind = settings(false).load.kind;
            let (policy, optimizer) = updated(kind, false, group.clone());
            let reference = reference(policy.as_ref(), offloads, group);
            let held = |reference: &Reference| {
                let tensors = reference.state();
                tensors.iter().map(|(_, tensor)| tensor.numel()).sum::<usize>()
            };
            if is_restored {
                reference
                    .restore(&SavedTensors::open(folder.path(), "reference", "").unwrap())
                    .unwrap();
            } else {
                reference.mix(policy.as_ref(), 0.25).unwrap();
            }
            let passes = || {
                let whole = reference.with(|model| {
                    let list = model.parameters().list.iter();
                    let whole: Vec<Tensor> = list.map(|p| p.value.copy()).collect();
                    Ok((whole, embedded(model)))
                });
                whole.unwrap()
            };
            let (first, second) = (passes(), passes());
            assert!(first.1.equal(&second.1));
            assert!(!first.1.equal(&embedded(policy.as_ref())));
            if size == 2 && !is_restored {
                optimizer.write_as(folder.path(), "reference", &reference.state()).unwrap();
            }
            (first.0, held(&reference))
        });
        let numbers: usize = all[0].0.iter().map(Tensor::numel).sum();
        let held: Vec<usize> = all.iter().map(|(_, held)| *held).collect();
        assert_eq!(held.iter().sum::<usize>(), numbers);
        // Each weight may end within a block.
        let most = (numbers + 256 * all[0].0.len()) / size + 256;
        assert!(held.iter().all(|&held| held <= most), "{held:?} of {numbers}");
        all.into_iter().map(|(whole, _)| whole).collect::<Vec<_>>()
    };
    let expected = states(1, false, false).remove(0);
    for (size, offloads, is_restored) in
        [(2, false, false), (3, true, false), (1, false, true), (3, true, true), (4, false, true)]
    {
        for whole in states(size, offloads, is_restored) {
            let are_same = whole.iter().zip(&expected).all(|(a, b)| a.equal(b));
            assert!(are_same, "{size} {offloads} {is_restored}");
        }
    }
}
