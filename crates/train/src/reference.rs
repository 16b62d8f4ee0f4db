//! The reference model: the policy as it was at the start, on the device or offloaded to host memory, whole or in shards over ranks.

use std::path::Path;
use std::rc::Rc;

use config::ZeroStage;
use models::{LoadOptions, Parameter, TrainedParts, VisionLanguageModel, load_model};
use tch::{Device, Kind, Tensor, no_grad};
use torch::ranks::Group;
use torch::{begin_copy, host_copy, wait_for};

use crate::settings::Settings;
use crate::shards::buckets::{Buckets, numbers};
use crate::shards::layout::{BUCKET, Slice};
use crate::shards::pieces::piece_name;
use crate::shards::saved::SavedTensors;
use crate::{TrainError, features};

/// A second copy of the weights.
pub(crate) struct Reference {
    model: Box<dyn VisionLanguageModel>,
    place: Place,
}

/// Where the weights lie between passes.
enum Place {
    /// In the layers.
    Device,
    /// In host memory, in the order of the parameters.
    Host(Vec<Tensor>),
    /// This rank has what it owns, flat, on the device or in host memory.
    Shards { buckets: Buckets, own: Vec<(Slice, Tensor)> },
}

impl Reference {
    /// Loads the model of `folder`; it shares the feature cache of the policy. At [`ZeroStage::Two`] over several ranks each keeps its shard.
    pub fn load(
        folder: &Path,
        settings: &Settings,
        policy: &dyn VisionLanguageModel,
        (group, stage): (Rc<Group>, ZeroStage),
    ) -> Result<Self, TrainError> {
        let options = LoadOptions { trained: TrainedParts::NONE, ..settings.load };
        let mut model = load_model(folder, options)?;
        features::share(policy, model.as_mut())?;
        let list = &model.parameters().list;
        let place = match (stage, settings.offload_reference) {
            (ZeroStage::Two, offloads) if group.size() > 1 => {
                let numels: Vec<i64> = list.iter().map(|p| p.value.numel() as i64).collect();
                shards(list, Buckets::new(&numels, group, BUCKET), offloads)?
            }
            (_, true) => {
                let copies = list.iter().map(|p| host_copy(&p.value, settings.load.device));
                Place::Host(copies.collect::<Result<_, _>>()?)
            }
            _ => Place::Device,
        };
        let reference = Reference { model, place };
        reference.put_away()?;
        Ok(reference)
    }

    /// Runs passes of the model, with its weights whole on the device meanwhile. Collective where they are in shards: ranks without passes call it too.
    pub fn with<R>(
        &self,
        passes: impl FnOnce(&dyn VisionLanguageModel) -> Result<R, TrainError>,
    ) -> Result<R, TrainError> {
        self.fetch()?;
        let result = passes(self.model.as_ref());
        self.put_away()?;
        result
    }

    /// Moves the weights towards the policy's: `(1 - alpha) * reference + alpha * policy`. What is not trained is the same in both.
    pub fn mix(&self, policy: &dyn VisionLanguageModel, alpha: f64) -> Result<(), TrainError> {
        let policy = &policy.parameters().list;
        no_grad(|| {
            for (item, mut weight) in self.weights() {
                let parameter = &policy[item.index];
                if !parameter.value.requires_grad() {
                    continue;
                }
                let target = match &item.part {
                    None => parameter.value.detach(),
                    Some(slice) => numbers(&parameter.value, slice)?,
                };
                let target = target.f_to_device(weight.device())?;
                let mixed = weight.f_multiply_scalar(1.0 - alpha)?.f_add(&(target * alpha))?;
                weight.f_copy_(&mixed)?;
            }
            Ok(())
        })
    }

    /// The weights by name, for checkpoints: the tensors that [`Self::mix`] changes. Of shards what this rank owns, with the names of pieces.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let list = &self.model.parameters().list;
        let named = |(item, weight): (Item, Tensor)| {
            let name = &list[item.index].name;
            let name = item.part.map_or(name.clone(), |slice| piece_name(name, slice.start));
            (name, weight)
        };
        self.weights().into_iter().map(named).collect()
    }

    /// Restores what ranks, as many as there were, wrote of [`Self::state`].
    ///
    /// # Errors
    /// [`TrainError::State`] where it is of another model; [`TrainError::Damaged`].
    pub fn restore(&self, saved: &SavedTensors) -> Result<(), TrainError> {
        let list = &self.model.parameters().list;
        no_grad(|| {
            for (item, weight) in self.weights() {
                let parameter = &list[item.index];
                let start = item.part.map_or(0, |slice| slice.start);
                let range = (start, weight.numel() as i64);
                let found = saved.read(&parameter.name, &parameter.value.size(), range)?;
                weight.shallow_clone().f_copy_(&found.f_view(weight.size().as_slice())?)?;
            }
            Ok(())
        })
    }

    /// The weights where they lie between passes.
    fn weights(&self) -> Vec<(Item, Tensor)> {
        let whole = |(index, weight): (usize, &Tensor)| {
            (Item { index, part: None }, weight.shallow_clone())
        };
        match &self.place {
            Place::Device => {
                let list = self.model.parameters().list.iter();
                list.map(|parameter| &parameter.value).enumerate().map(whole).collect()
            }
            Place::Host(offloaded) => offloaded.iter().enumerate().map(whole).collect(),
            Place::Shards { own, .. } => {
                let part = |(slice, weight): &(Slice, Tensor)| {
                    (Item { index: slice.item, part: Some(*slice) }, weight.shallow_clone())
                };
                own.iter().map(part).collect()
            }
        }
    }

    /// Points the layers to whole weights on the device.
    fn fetch(&self) -> Result<(), TrainError> {
        let (kind, device) = self.model.compute();
        let list = &self.model.parameters().list;
        match &self.place {
            Place::Device => Ok(()),
            Place::Host(offloaded) => {
                let mut pairs = list.iter().zip(offloaded);
                pairs.try_for_each(|(p, weight)| point(p, &begin_copy(weight, device)?))
            }
            Place::Shards { buckets, own } => {
                let mut whole = Vec::new();
                for parameter in list {
                    whole.push(Tensor::f_empty(parameter.value.size(), (kind, device))?);
                }
                gather(buckets, own, (kind, device), &whole)?;
                list.iter().zip(&whole).try_for_each(|(parameter, whole)| point(parameter, whole))
            }
        }
    }

    /// Points the layers away from what is to be freed.
    fn put_away(&self) -> Result<(), TrainError> {
        let list = &self.model.parameters().list;
        match &self.place {
            Place::Device => Ok(()),
            Place::Host(offloaded) => {
                list.iter().zip(offloaded).try_for_each(|(p, weight)| point(p, weight))
            }
            Place::Shards { .. } => list.iter().try_for_each(|parameter| {
                // One number that has the shape of all.
                let value = &parameter.value;
                let one = Tensor::f_zeros([1], (value.kind(), value.device()))?;
                point(parameter, &one.f_expand(value.size(), false)?)
            }),
        }
    }
}

/// A weight, or the part of one that this rank owns.
struct Item {
    /// Of the parameters.
    index: usize,
    part: Option<Slice>,
}

/// The layer that holds the weight shares the tensor, and with it the data.
fn point(parameter: &Parameter, weight: &Tensor) -> Result<(), TrainError> {
    Ok(parameter.value.shallow_clone().f_set_data(weight)?)
}

fn shards(list: &[Parameter], buckets: Buckets, offloads: bool) -> Result<Place, TrainError> {
    let mut own = Vec::new();
    for owned in buckets.own() {
        let value = &list[owned.slice.item].value;
        let part = numbers(value, &owned.slice)?;
        let part = match offloads {
            true => host_copy(&part, value.device())?,
            false => part.f_to_device_(value.device(), value.kind(), false, true)?,
        };
        own.push((owned.slice, part));
    }
    if let Some(parameter) = list.first() {
        wait_for(parameter.value.device());
    }
    Ok(Place::Shards { buckets, own })
}

fn gather(
    buckets: &Buckets,
    own: &[(Slice, Tensor)],
    compute: (Kind, Device),
    whole: &[Tensor],
) -> Result<(), TrainError> {
    no_grad(|| {
        let part = |index: usize| Ok(own[index].1.shallow_clone());
        buckets.gather(compute, part, |slice, gathered| {
            numbers(&whole[slice.item], slice)?.f_copy_(gathered)?;
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use config::{ColonList, GrpoConfig};

    use super::*;

    #[test]
    fn weights_are_on_the_device_while_passes_run() {
        let folder = testing::checkpoint("nested");
        let config = GrpoConfig::default().with(|c| {
            c.data.data_file_paths = ColonList("rows.jsonl".into());
            c.rollout.offload_reference = true;
            c.machine.device = torch::name_of_test_device();
        });
        let settings = Settings::try_from(&config).unwrap();
        let policy = load_model(&folder, settings.load).unwrap();
        let alone = (Rc::new(Group::alone()), ZeroStage::Zero);
        let reference = Reference::load(&folder, &settings, policy.as_ref(), alone).unwrap();
        let Place::Host(offloaded) = &reference.place else { panic!("not offloaded") };
        let data = |model: &dyn VisionLanguageModel| -> Vec<_> {
            model.parameters().list.iter().map(|p| p.value.data_ptr()).collect()
        };
        let in_host_memory: Vec<_> = offloaded.iter().map(Tensor::data_ptr).collect();
        assert_eq!(data(reference.model.as_ref()), in_host_memory);
        let ids = torch::on_test_device(&[1i64, 2]);
        let expected = policy.embed_tokens(&ids).detach();
        for _ in 0..2 {
            let embedded = reference.with(|model| {
                assert!(data(model).iter().zip(&in_host_memory).all(|(now, host)| now != host));
                // The layers see what the parameters see.
                Ok(model.embed_tokens(&ids))
            });
            assert_eq!(embedded.unwrap(), expected);
            assert_eq!(data(reference.model.as_ref()), in_host_memory);
        }
    }
}
