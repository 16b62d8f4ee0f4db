//! Which fast forms on a GPU are in use. One that misbehaves on a card is switched off here by name; the `_reference` forms serve then. CPU
//! kernels are not subject to it.

use std::sync::atomic::{AtomicU32, Ordering};

/// A form of work on a GPU that has a slower one beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPath {
    /// The norm as one operation.
    FusedNorm,
    /// Rotary embedding in three operations, or by one product in decoding.
    Rotation,
    /// The sum with the residual stream within the product.
    ResidualProduct,
    /// Decoding by flash attention over prompt and completion.
    DecodeAttention,
    /// Variable-length flash attention over packed tokens.
    FlashAttention,
    /// Decoding steps captured once and replayed.
    CudaGraphs,
    /// AdamW over many tensors in one operation.
    FusedAdamw,
    /// Uploads from page-locked memory, which do not wait.
    PinnedCopies,
}

impl FastPath {
    /// All of them.
    pub const ALL: [FastPath; 8] = [
        FastPath::FusedNorm,
        FastPath::Rotation,
        FastPath::ResidualProduct,
        FastPath::DecodeAttention,
        FastPath::FlashAttention,
        FastPath::CudaGraphs,
        FastPath::FusedAdamw,
        FastPath::PinnedCopies,
    ];

    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            FastPath::FusedNorm => "fused_norm",
            FastPath::Rotation => "rotation",
            FastPath::ResidualProduct => "residual_product",
            FastPath::DecodeAttention => "decode_attention",
            FastPath::FlashAttention => "flash_attention",
            FastPath::CudaGraphs => "cuda_graphs",
            FastPath::FusedAdamw => "fused_adamw",
            FastPath::PinnedCopies => "pinned_copies",
        }
    }

    /// The one of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|path| path.name() == name)
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// One bit each for those that are off.
#[derive(Debug, Default)]
struct Switches(AtomicU32);

impl Switches {
    fn is_on(&self, path: FastPath) -> bool {
        self.0.load(Ordering::Relaxed) & path.bit() == 0
    }

    fn set(&self, path: FastPath, on: bool) {
        match on {
            true => self.0.fetch_and(!path.bit(), Ordering::Relaxed),
            false => self.0.fetch_or(path.bit(), Ordering::Relaxed),
        };
    }
}

static SWITCHES: Switches = Switches(AtomicU32::new(0));

/// Whether `path` is in use in this process: all are until [`set_enabled`].
pub fn is_enabled(path: FastPath) -> bool {
    SWITCHES.is_on(path)
}

/// Takes `path` in use or out of it, for the whole process. What was built before keeps its form.
pub fn set_enabled(path: FastPath, enabled: bool) {
    SWITCHES.set(path, enabled);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_switched_alone() {
        let switches = Switches::default();
        for path in FastPath::ALL {
            switches.set(path, false);
            let off: Vec<_> = FastPath::ALL.into_iter().filter(|p| !switches.is_on(*p)).collect();
            assert_eq!(off, [path], "{}", path.name());
            switches.set(path, true);
        }
        assert!(FastPath::ALL.into_iter().all(|path| switches.is_on(path)));
        let names: std::collections::HashSet<_> = FastPath::ALL.map(FastPath::name).into();
        assert_eq!(names.len(), FastPath::ALL.len());
    }
}
