//! The reference model: the policy as it was at the start, on the device or waiting in host memory.

use std::path::Path;

use models::{LoadOptions, Parameter, TrainedParts, VisionLanguageModel, load_model};
use tch::Tensor;
use torch::{begin_copy, host_copy};

use crate::settings::Settings;
use crate::{TrainError, features};

/// A second copy of the weights.
pub(crate) struct Reference {
    model: Box<dyn VisionLanguageModel>,
    /// Where the weights wait between passes, in the order of the parameters.
    waiting: Option<Vec<Tensor>>,
}

impl Reference {
    /// Loads the model of `folder`; what the policy keeps of images serves it too.
    pub fn load(
        folder: &Path,
        settings: &Settings,
        policy: &dyn VisionLanguageModel,
    ) -> Result<Self, TrainError> {
        let options = LoadOptions { trained: TrainedParts::NONE, ..settings.load };
        let mut model = load_model(folder, options)?;
        features::share(policy, model.as_mut())?;
        let mut reference = Reference { model, waiting: None };
        if settings.offload_reference {
            let device = settings.load.device;
            let list = reference.model.parameters().list.iter();
            let copies = list.map(|p| host_copy(&p.value, device));
            reference.waiting = Some(copies.collect::<Result<_, _>>()?);
            reference.send_away()?;
        }
        Ok(reference)
    }

    /// Runs passes of the model. Weights that wait in host memory are on the device meanwhile.
    pub fn with<R>(
        &self,
        passes: impl FnOnce(&dyn VisionLanguageModel) -> Result<R, TrainError>,
    ) -> Result<R, TrainError> {
        let device = self.model.compute().1;
        self.place(|waiting| Ok(begin_copy(waiting, device)?))?;
        let result = passes(self.model.as_ref());
        self.send_away()?;
        result
    }

    fn send_away(&self) -> Result<(), TrainError> {
        self.place(|waiting| Ok(waiting.shallow_clone()))
    }

    /// Lets layers read their weights from what `of` makes of those that wait.
    fn place(&self, of: impl Fn(&Tensor) -> Result<Tensor, TrainError>) -> Result<(), TrainError> {
        let Some(waiting) = &self.waiting else {
            return Ok(());
        };
        let place = |(parameter, waiting): (&Parameter, &Tensor)| {
            // The layer that holds this weight shares the tensor, and with it the data.
            Ok(parameter.value.shallow_clone().f_set_data(&of(waiting)?)?)
        };
        let list = &self.model.parameters().list;
        list.iter().zip(waiting).try_for_each(place)
    }
}

#[cfg(test)]
mod tests {
    use config::{ColonList, GrpoConfig};

    use super::*;

    #[test]
    fn weights_are_there_while_passes_run() {
        let folder = testing::checkpoint("nested");
        let config = GrpoConfig::default().with(|c| {
            c.data.data_file_paths = ColonList("rows.jsonl".into());
            c.rollout.offload_reference = true;
            c.machine.device = "cpu".into();
        });
        let settings = Settings::try_from(&config).unwrap();
        let policy = load_model(&folder, settings.load).unwrap();
        let reference = Reference::load(&folder, &settings, policy.as_ref()).unwrap();
        let waiting = reference.waiting.as_ref().unwrap();
        let data = |model: &dyn VisionLanguageModel| -> Vec<_> {
            model.parameters().list.iter().map(|p| p.value.data_ptr()).collect()
        };
        let at_home: Vec<_> = waiting.iter().map(Tensor::data_ptr).collect();
        assert_eq!(data(reference.model.as_ref()), at_home);
        let ids = Tensor::from_slice(&[1i64, 2]);
        let expected = policy.embed_tokens(&ids).detach();
        for _ in 0..2 {
            let embedded = reference.with(|model| {
                assert!(data(model).iter().zip(&at_home).all(|(there, home)| there != home));
                // The layers see what the parameters see.
                Ok(model.embed_tokens(&ids))
            });
            assert_eq!(embedded.unwrap(), expected);
            assert_eq!(data(reference.model.as_ref()), at_home);
        }
    }
}
