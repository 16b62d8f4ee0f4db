//! A cache of image features of a frozen vision tower, keyed by content.
//!
//! Features depend only on the image and the tower. While tower and merger are frozen, all passes of a step (generation and the
//! reference too) and of later epochs use the same features. Each image goes through the tower alone, so its features do not depend on
//! the batch or on the cache's contents: a resumed run computes what an uninterrupted one does.

mod store;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use base::PreparedImage;
use sha2::{Digest, Sha256};
use tch::{Cuda, Device, Tensor, no_grad};

use crate::ModelError;
use crate::checkpointing::Checkpointing;
use crate::inputs::pixel_values;
use crate::layers::PackedWeights;
use crate::model::{Part, VisionLanguageModel};
use crate::parameters::{Parameter, Parameters};

use store::{Shape, Store};

/// Raise it whenever towers compute other numbers from the same weights.
const VERSION: &str = "2";

/// Size and folder of the cache.
#[derive(Clone, Debug, Default)]
pub struct FeatureCacheOptions {
    /// Most bytes of features on the device; 0 keeps none there.
    pub max_bytes: usize,
    /// A folder with a file for each image; any number of processes may read it and add to it.
    pub folder: Option<PathBuf>,
}

impl FeatureCacheOptions {
    /// Whether nothing would be cached.
    pub fn is_off(&self) -> bool {
        self.max_bytes == 0 && self.folder.is_none()
    }
}

/// Counters of a cache since its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FeatureStats {
    /// Images found in memory.
    pub hits: usize,
    /// Images found in the folder.
    pub loads: usize,
    /// Images that went through the tower.
    pub misses: usize,
    /// Seconds of tower passes avoided, less the time to read files.
    pub saved_secs: f64,
    /// Bytes in memory now.
    pub num_bytes: usize,
}

/// SHA-256 of a tower and an image.
type Key = [u8; 32];

/// Features of one image.
#[derive(Debug)]
struct Kept {
    /// `[image tokens, feature_size]` in the compute type.
    features: Tensor,
    /// Seconds that the tower took.
    secs: f64,
}

impl Kept {
    fn num_bytes(&self) -> usize {
        self.features.numel() * self.features.kind().elt_size_in_bytes()
    }
}

/// An LRU cache of image features by tower and content. Models may share one; only those with equal towers share features.
#[derive(Debug)]
pub struct FeatureCache {
    max_bytes: usize,
    store: Option<Store>,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Features and the time of their last use.
    kept: HashMap<Key, (Kept, u64)>,
    /// By last use.
    order: BTreeMap<u64, Key>,
    uses: u64,
    stats: FeatureStats,
    problems: Vec<String>,
}

impl FeatureCache {
    /// An empty cache; the folder is made.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn new(options: &FeatureCacheOptions) -> Result<Self, ModelError> {
        Ok(FeatureCache {
            max_bytes: options.max_bytes,
            store: options.folder.as_deref().map(Store::open).transpose()?,
            state: RefCell::default(),
        })
    }

    /// Counters so far.
    pub fn stats(&self) -> FeatureStats {
        self.state.borrow().stats
    }

    /// Failures with files since the last call. The features were computed anyway.
    pub fn take_problems(&self) -> Vec<String> {
        std::mem::take(&mut self.state.borrow_mut().problems)
    }

    /// The features under `key`: from memory, from the folder, or from `compute`.
    fn get(&self, key: Key, shape: Shape, compute: impl FnOnce() -> Kept) -> Tensor {
        if let Some(features) = self.state.borrow_mut().recall(&key) {
            return features;
        }
        let start = Instant::now();
        let stored = self.store.as_ref().map(|store| store.read(&key, shape));
        let (kept, is_stored) = match stored {
            Some(Ok(Some(kept))) => {
                let mut state = self.state.borrow_mut();
                state.stats.loads += 1;
                state.stats.saved_secs += kept.secs - start.elapsed().as_secs_f64();
                (kept, true)
            }
            other => {
                if let Some(Err(error)) = other {
                    self.note(format!("{error}; computed again"));
                }
                self.state.borrow_mut().stats.misses += 1;
                (compute(), false)
            }
        };
        if let (Some(store), false) = (&self.store, is_stored)
            && let Err(error) = store.write(&key, &kept)
        {
            self.note(format!("{error}; no more features are stored"));
        }
        let features = kept.features.shallow_clone();
        self.state.borrow_mut().keep(key, kept, self.max_bytes);
        features
    }

    fn note(&self, problem: String) {
        self.state.borrow_mut().problems.push(problem);
    }
}

impl State {
    fn recall(&mut self, key: &Key) -> Option<Tensor> {
        let (kept, used) = self.kept.get_mut(key)?;
        self.uses += 1;
        self.order.remove(used);
        self.order.insert(self.uses, *key);
        *used = self.uses;
        self.stats.hits += 1;
        self.stats.saved_secs += kept.secs;
        Some(kept.features.shallow_clone())
    }

    /// Stores new features, unless they exceed the whole cache.
    fn keep(&mut self, key: Key, kept: Kept, max_bytes: usize) {
        let new = kept.num_bytes();
        if new > max_bytes {
            return;
        }
        while self.stats.num_bytes + new > max_bytes {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            if let Some((old, _)) = self.kept.remove(&oldest) {
                self.stats.num_bytes -= old.num_bytes();
            }
        }
        self.uses += 1;
        self.stats.num_bytes += new;
        self.order.insert(self.uses, key);
        self.kept.insert(key, (kept, self.uses));
    }
}

/// A cache, and the tower of the model that uses it.
#[derive(Debug)]
pub struct TowerFeatures {
    cache: Rc<FeatureCache>,
    /// SHA-256 of all that determines the tower's features.
    tower: [u8; 32],
}

impl TowerFeatures {
    /// `settings` is all that the tower of `model` depends on beside its weights.
    ///
    /// # Errors
    /// [`ModelError::TrainedTower`], since its features change; libtorch's own.
    pub fn new(
        cache: Rc<FeatureCache>,
        model: &dyn VisionLanguageModel,
        settings: &str,
    ) -> Result<Self, ModelError> {
        if !is_tower_frozen(model.parameters()) {
            return Err(ModelError::TrainedTower);
        }
        let tower = fingerprint(model, settings)?;
        Ok(TowerFeatures { cache, tower })
    }

    /// The cache.
    pub fn cache(&self) -> &Rc<FeatureCache> {
        &self.cache
    }

    /// Features of images, concatenated: `[image tokens, feature_size]`, without a graph. `model` must be the one given to `new`.
    pub fn of(
        &self,
        model: &dyn VisionLanguageModel,
        images: &[Arc<PreparedImage>],
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        no_grad(|| {
            let rows: Vec<Tensor> =
                images.iter().map(|image| self.one(model, image, packed)).collect();
            Tensor::cat(&rows, 0)
        })
    }

    fn one(
        &self,
        model: &dyn VisionLanguageModel,
        image: &Arc<PreparedImage>,
        packed: Option<&PackedWeights>,
    ) -> Tensor {
        let (kind, device) = model.compute();
        let merged = image.layout.num_tokens();
        let shape = Shape { dims: [merged as i64, model.feature_size()], kind, device };
        let key =
            Sha256::new().chain_update(self.tower).chain_update(image.digest()).finalize().into();
        self.cache.get(key, shape, || {
            let pixels = pixel_values(std::slice::from_ref(image), kind, device);
            wait_for(device);
            let start = Instant::now();
            let tiles = &image.layout.tiles;
            let features =
                model.vision_stages(&mut Checkpointing::new(false), &pixels, tiles, packed);
            wait_for(device);
            Kept { features, secs: start.elapsed().as_secs_f64() }
        })
    }
}

/// GPU work is asynchronous; timing has to wait for it.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Weights of the vision tower and its merger, their adapters included.
fn tower(parameters: &Parameters) -> impl Iterator<Item = &Parameter> {
    let list = parameters.list.iter();
    list.filter(|p| p.part != Part::Language)
}

/// Whether tower and merger never change: nothing in them is trained, and no adapter could be switched off.
pub fn is_tower_frozen(parameters: &Parameters) -> bool {
    tower(parameters).all(|p| !p.is_adapter && !p.value.requires_grad())
}

fn fingerprint(model: &dyn VisionLanguageModel, settings: &str) -> Result<[u8; 32], ModelError> {
    let (kind, device) = model.compute();
    // Kernels of different devices round differently.
    let device = if device.is_cuda() { "cuda" } else { "cpu" };
    let kind = format!("{kind:?}");
    let mut hash = Sha256::new();
    let mut update = |bytes: &[u8]| {
        // Lengths separate `ab`, `c` from `a`, `bc`.
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for part in [VERSION, model.family().model_type, &kind, device, settings] {
        update(part.as_bytes());
    }
    for parameter in tower(model.parameters()) {
        update(parameter.name.as_bytes());
        update(format!("{:?}", parameter.value.size()).as_bytes());
        update(&bytes(&parameter.value)?);
    }
    Ok(hash.finalize().into())
}

/// A tensor's bytes.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>, tch::TchError> {
    let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn shape() -> Shape {
        Shape { dims: [1, 4], kind: Kind::Float, device: torch::device_of_tests() }
    }

    /// Features of 16 bytes that are all `value`.
    fn kept(value: u8) -> Kept {
        Kept {
            features: Tensor::full(
                [1, 4],
                i64::from(value),
                (Kind::Float, torch::device_of_tests()),
            ),
            secs: 0.5,
        }
    }

    /// Asks for keys in order; those that were computed.
    fn computed(cache: &FeatureCache, keys: &[u8]) -> Vec<u8> {
        let mut computed = Vec::new();
        for &key in keys {
            let features = cache.get([key; 32], shape(), || {
                computed.push(key);
                kept(key)
            });
            assert!(features.equal(&kept(key).features), "{key}");
            assert!(cache.stats().num_bytes <= cache.max_bytes);
        }
        computed
    }

    fn of_bytes(max_bytes: usize) -> FeatureCache {
        let options = FeatureCacheOptions { max_bytes, folder: None };
        FeatureCache::new(&options).unwrap()
    }

    #[test]
    fn the_least_recently_used_is_evicted() {
        let cache = of_bytes(3 * 16 + 15);
        assert_eq!(computed(&cache, &[1, 2, 3]), [1, 2, 3]);
        assert_eq!(cache.stats().num_bytes, 48);
        // 1 was used after 2, so 2 goes for 4, then 3 for 2.
        assert_eq!(computed(&cache, &[1, 4, 1, 3]), [4]);
        assert_eq!(computed(&cache, &[2, 1, 3]), [2]);
        assert_eq!(computed(&cache, &[4]), [4]);
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.loads, stats.misses), (5, 0, 6));
        assert!((stats.saved_secs - 2.5).abs() < 1e-12);
        assert_eq!(stats.num_bytes, 48);
    }

    #[test]
    fn a_large_entry_evicts_several_and_one_too_large_none() {
        let cache = of_bytes(48);
        computed(&cache, &[1, 2, 3]);
        let wide = |rows: i64| Kept {
            features: Tensor::zeros([rows, 4], (Kind::Float, torch::device_of_tests())),
            secs: 0.0,
        };
        let shape = |rows| Shape { dims: [rows, 4], ..shape() };
        assert_eq!(cache.get([9; 32], shape(4), || wide(4)).size(), [4, 4]);
        assert_eq!(computed(&cache, &[1, 2, 3]), [0; 0], "64 bytes never fit");
        assert_eq!(cache.get([8; 32], shape(2), || wide(2)).size(), [2, 4]);
        assert_eq!(computed(&cache, &[3]), [0; 0]);
        assert_eq!(computed(&cache, &[1]), [1]);
        assert_eq!(cache.stats().num_bytes, 32, "two rows went for 1");
    }

    #[test]
    fn an_empty_cache_computes_all() {
        let cache = of_bytes(0);
        assert_eq!(computed(&cache, &[1, 1, 2]), [1, 1, 2]);
        assert_eq!(cache.stats().num_bytes, 0);
    }
}
