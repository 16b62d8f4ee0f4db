//! The reference model: the policy as it was at the start, on the device or offloaded to host memory.

use std::path::Path;

use models::{LoadOptions, Parameter, TrainedParts, VisionLanguageModel, load_model};
use tch::{Tensor, no_grad};
use torch::{begin_copy, host_copy};

use crate::settings::Settings;
use crate::{TrainError, features};

/// A second copy of the weights.
pub(crate) struct Reference {
    model: Box<dyn VisionLanguageModel>,
    /// The weights in host memory, in the order of the parameters.
    offloaded: Option<Vec<Tensor>>,
}

impl Reference {
    /// Loads the model of `folder`; it shares the feature cache of the policy.
    pub fn load(
        folder: &Path,
        settings: &Settings,
        policy: &dyn VisionLanguageModel,
    ) -> Result<Self, TrainError> {
        let options = LoadOptions { trained: TrainedParts::NONE, ..settings.load };
        let mut model = load_model(folder, options)?;
        features::share(policy, model.as_mut())?;
        let mut reference = Reference { model, offloaded: None };
        if settings.offload_reference {
            let device = settings.load.device;
            let list = reference.model.parameters().list.iter();
            let copies = list.map(|p| host_copy(&p.value, device));
            reference.offloaded = Some(copies.collect::<Result<_, _>>()?);
            reference.offload()?;
        }
        Ok(reference)
    }

    /// Runs passes of the model, with offloaded weights on the device meanwhile.
    pub fn with<R>(
        &self,
        passes: impl FnOnce(&dyn VisionLanguageModel) -> Result<R, TrainError>,
    ) -> Result<R, TrainError> {
        let device = self.model.compute().1;
        self.swap_weights(|offloaded| Ok(begin_copy(offloaded, device)?))?;
        let result = passes(self.model.as_ref());
        self.offload()?;
        result
    }

    /// Moves the weights towards the policy's: `(1 - alpha) * reference + alpha * policy`. What is not trained is the same in both.
    pub fn mix(&self, policy: &dyn VisionLanguageModel, alpha: f64) -> Result<(), TrainError> {
        no_grad(|| {
            let pairs = self.weights().into_iter().zip(&policy.parameters().list);
            for (mut weight, parameter) in
                pairs.filter(|(_, parameter)| parameter.value.requires_grad())
            {
                let target = parameter.value.detach().f_to_device(weight.device())?;
                let mixed = weight.f_multiply_scalar(1.0 - alpha)?.f_add(&(target * alpha))?;
                weight.f_copy_(&mixed)?;
            }
            Ok(())
        })
    }

    /// The weights by name, for checkpoints: the tensors that [`Self::mix`] changes.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let names = self.model.parameters().list.iter().map(|parameter| parameter.name.clone());
        names.zip(self.weights()).collect()
    }

    /// The weights where they lie between passes.
    fn weights(&self) -> Vec<Tensor> {
        match &self.offloaded {
            Some(offloaded) => offloaded.iter().map(Tensor::shallow_clone).collect(),
            None => {
                let list = self.model.parameters().list.iter();
                list.map(|parameter| parameter.value.shallow_clone()).collect()
            }
        }
    }

    fn offload(&self) -> Result<(), TrainError> {
        self.swap_weights(|offloaded| Ok(offloaded.shallow_clone()))
    }

    /// Points the layers to the tensors that `of` makes of the offloaded weights.
    fn swap_weights(
        &self,
        of: impl Fn(&Tensor) -> Result<Tensor, TrainError>,
    ) -> Result<(), TrainError> {
        let Some(offloaded) = &self.offloaded else {
            return Ok(());
        };
        let swap = |(parameter, offloaded): (&Parameter, &Tensor)| {
            // The layer that holds this weight shares the tensor, and with it the data.
            Ok(parameter.value.shallow_clone().f_set_data(&of(offloaded)?)?)
        };
        let list = &self.model.parameters().list;
        list.iter().zip(offloaded).try_for_each(swap)
    }
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
        let reference = Reference::load(&folder, &settings, policy.as_ref()).unwrap();
        let offloaded = reference.offloaded.as_ref().unwrap();
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
