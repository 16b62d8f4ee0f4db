//! Cards that a plan can be made for where they are not, and every constant of a prediction.
//!
//! Copies and matrix products were measured on an H200 with PyTorch 2.11. For the other cards the maker's figures are
//! scaled by the part that the H200 reached of its own. The rest are assumptions, each said where it stands; counts of
//! launches are held by the tests of the device path.

/// A card by what bounds a step on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// As it is shown, and named after `--device`.
    pub name: &'static str,
    /// Memory as PyTorch counts it, bytes.
    pub memory_bytes: u64,
    /// Bytes a second of its memory, by the maker.
    nominal_bytes_per_sec: f64,
    /// Dense products of bf16 with sums in f32, FLOP a second, by the maker.
    nominal_flop_per_sec: f64,
}

/// Totals are those of PyTorch's own messages ("total capacity of"); rates those of NVIDIA's data sheets: H200 SXM, H100
/// SXM, A100 80GB SXM, and the Ada architecture's paper for the RTX 4090.
pub const CARDS: [Card; 4] = [
    card("H200", 139.8, H200_NOMINAL_BYTES_PER_SEC, H200_NOMINAL_FLOP_PER_SEC),
    card("H100", 79.1, 3.35e12, 989.4e12),
    card("A100", 79.15, 2.039e12, 312.0e12),
    card("RTX4090", 23.6, 1.008e12, 165.2e12),
];

const H200_NOMINAL_BYTES_PER_SEC: f64 = 4.8e12;
const H200_NOMINAL_FLOP_PER_SEC: f64 = 989.4e12;
/// Of `Tensor::copy_` on an H200, bytes read and bytes written both counted.
const H200_COPIED_BYTES_PER_SEC: f64 = 4.3e12;
/// Of a bf16 `mm` of 8,192 squared on an H200.
const H200_MATMUL_FLOP_PER_SEC: f64 = 790e12;

/// What a decoding pass or an update reaches of the bandwidth of a copy.
const BANDWIDTH_SHARE: f64 = 0.85;
/// What a pass of many tokens reaches of the rate of one large product, the small operations between products included.
const MATMUL_SHARE: f64 = 0.70;
/// Of a kernel launched by itself. Added to the work of the card, as if neither hid the other.
const LAUNCH_SECS: f64 = 4e-6;
/// Of a card's memory; the rest is left to the CUDA context, workspaces and gaps of the allocator.
const USABLE_SHARE: f64 = 0.9;

/// Launches, held to the counts of the device suite (`crates/train/tests/it/device.rs`).
pub mod launches {
    /// Of one text layer for one token of all completions.
    pub const PER_LAYER_DECODING: u64 = 20;
    /// Of a decoding pass outside the layers: embedding, head, choice of a token.
    pub const PER_TOKEN_DECODING: u64 = 36;
    /// Of a replayed pass (`--cuda_graphs true`).
    pub const PER_GRAPH: u64 = 1;
    /// Of one text layer, forward, in a pass over packed tokens.
    pub const PER_LAYER_TRAINING_FORWARD: u64 = 19;
    /// Of its backward pass.
    pub const PER_LAYER_TRAINING_BACKWARD: u64 = 38;
    /// Of one vision block, forward.
    pub const PER_BLOCK_TRAINING_FORWARD: u64 = 27;
    /// Of its backward pass.
    pub const PER_BLOCK_TRAINING_BACKWARD: u64 = 45;
}

/// Launches that an adapter adds to its linear layer: two products, the factor, the sum. Twice as many backward.
pub const LAUNCHES_PER_ADAPTER: u64 = 4;
/// Launches of the update of one trained tensor: its norm, clipping, AdamW, masters.
pub const LAUNCHES_PER_TENSOR_UPDATE: u64 = 10;

/// Bytes that an update reads and writes by trained number: the norm reads the gradient, clipping reads and writes it,
/// AdamW reads weight, gradient and moments and writes all but the gradient.
pub const UPDATE_BYTES: u64 = 40;
/// More in bf16: value and residual become an f32 and are cut again.
pub const UPDATE_BYTES_OF_MASTERS: u64 = 16;
/// More with moments in 8 bits: codes and f32 copies of a chunk, less the f32 moments that are not there.
pub const UPDATE_BYTES_OF_8BIT: u64 = 20;
/// For each micro-batch of several: the gradient is read and added to its f32 sum.
pub const SUM_BYTES: u64 = 12;

/// What a part of a step asks of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Demand {
    /// Multiply-adds count twice.
    pub flop: f64,
    /// Read and written, where they bound the part.
    pub bytes: f64,
    /// Kernels launched one by one.
    pub launches: f64,
}

impl Demand {
    /// `count` times as much.
    pub(super) fn times(self, count: f64) -> Self {
        let Demand { flop, bytes, launches } = self;
        Demand { flop: flop * count, bytes: bytes * count, launches: launches * count }
    }
}

const fn card(name: &'static str, gibibytes: f64, bytes: f64, flop: f64) -> Card {
    let memory_bytes = (gibibytes * 1_073_741_824.0) as u64;
    Card { name, memory_bytes, nominal_bytes_per_sec: bytes, nominal_flop_per_sec: flop }
}

impl Card {
    /// The card of that name, however it is written: `rtx-4090`, `NVIDIA GeForce RTX 4090` and `4090` are one.
    pub fn named(name: &str) -> Option<Self> {
        let plain = |text: &str| {
            let mut text = text.to_ascii_lowercase();
            text.retain(|c| c.is_ascii_alphanumeric());
            ["nvidia", "geforce", "rtx"].iter().fold(text, |text, word| text.replace(word, ""))
        };
        CARDS.into_iter().find(|card| plain(card.name) == plain(name))
    }

    /// Bytes that a run may take.
    pub fn usable_bytes(&self) -> u64 {
        (self.memory_bytes as f64 * USABLE_SHARE) as u64
    }

    /// Bytes a second that a part of a step reaches.
    pub fn bytes_per_sec(&self) -> f64 {
        let measured = H200_COPIED_BYTES_PER_SEC / H200_NOMINAL_BYTES_PER_SEC;
        BANDWIDTH_SHARE * measured * self.nominal_bytes_per_sec
    }

    /// FLOP a second that a part of a step reaches.
    pub fn flop_per_sec(&self) -> f64 {
        let measured = H200_MATMUL_FLOP_PER_SEC / H200_NOMINAL_FLOP_PER_SEC;
        MATMUL_SHARE * measured * self.nominal_flop_per_sec
    }

    /// Seconds of a part of a step.
    pub fn secs(&self, demand: Demand) -> f64 {
        let work = (demand.bytes / self.bytes_per_sec()).max(demand.flop / self.flop_per_sec());
        work + demand.launches * LAUNCH_SECS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_write_them() {
        let named = |name| Card::named(name).map(|card| card.name);
        for name in ["RTX4090", "rtx 4090", "RTX-4090", "NVIDIA GeForce RTX 4090", "4090"] {
            assert_eq!(named(name), Some("RTX4090"), "{name}");
        }
        assert_eq!((named("h200"), named("NVIDIA H100")), (Some("H200"), Some("H100")));
        for name in ["", "rtx", "H300", "cuda:0", "auto"] {
            assert_eq!(named(name), None, "{name}");
        }
    }

    #[test]
    fn the_rates_of_an_h200_are_those_measured() {
        let card = Card::named("H200").unwrap();
        assert!((card.bytes_per_sec() / (0.85 * 4.3e12) - 1.0).abs() < 1e-12);
        assert!((card.flop_per_sec() / (0.7 * 790e12) - 1.0).abs() < 1e-12);
        // A tenth is left free.
        assert_eq!(card.usable_bytes() >> 20, (139.8 * 0.9 * 1024.0) as u64);
        let a100 = Card::named("A100").unwrap();
        assert!((a100.flop_per_sec() / card.flop_per_sec() - 312.0 / 989.4).abs() < 1e-12);
    }

    #[test]
    fn the_slower_of_memory_and_products_counts_and_launches_come_on_top() {
        let card = Card::named("H200").unwrap();
        let secs = |flop, bytes, launches| card.secs(Demand { flop, bytes, launches });
        let near = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-9, "{got}");
        near(secs(553e12, 1e12, 0.0), 1.0);
        near(secs(1e12, 3.655e12, 0.0), 1.0);
        near(secs(0.0, 3.655e12, 250_000.0), 2.0);
    }
}
