//! The kernels of sampling against libtorch's operations, and a whole layer against its parts.

use tch::{Device, Kind, Tensor};

use super::*;
use crate::fused::tests::{distance, draw, tolerance};
use crate::linear::{PackedCopy, PackedLinear, packed_linears};

#[test]
fn decode_attention_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for [heads, kv_heads, dim] in [
            [8, 2, 64],
            [7, 1, 8],
            [4, 4, 20],
            [3, 1, 16],
            [8, 8, 80],
            [4, 1, 96],
            [14, 2, 128],
            [2, 2, 192],
            [8, 4, 256],
        ] {
            decode_case(kind, [heads, kv_heads, dim], None, None);
            decode_case(kind, [heads, kv_heads, dim], Some([0, 30, 48, 71]), Some(0.05));
        }
    }
}

/// `first`: the first key that is seen, of prompt and completion, of each slot.
fn decode_case(
    kind: Kind,
    [heads, kv_heads, dim]: [i64; 3],
    first: Option<[i64; 4]>,
    scale: Option<f64>,
) {
    let (width, room) = (48, 24);
    // Slots of two prompts of 48 and 37 tokens, with completions of 0, 1, 17 and 23 tokens before the new one.
    let (prompts, lens, completion_lens) =
        ([1i64, 0, 1, 0], [37i64, 48, 37, 48], [0i64, 1, 17, 23]);
    let count = prompts.len() as i64;
    let q = draw(&[count, heads, dim], kind, 8);
    let [k, v] = [9, 10].map(|seed| draw(&[count, kv_heads, dim], kind, seed));
    let prompt_keys = draw(&[2, kv_heads, dim, width], kind, 11);
    let prompt_values = draw(&[2, kv_heads, width, dim], kind, 12);
    let [completion_keys, completion_values] =
        [13, 14].map(|seed| draw(&[count + 1, kv_heads, room, dim], kind, seed));
    let got = decode_attention(
        [&q, &k, &v],
        &KvView {
            prompt_keys: &prompt_keys,
            prompt_values: &prompt_values,
            completion_keys: &completion_keys,
            completion_values: &completion_values,
            prompt_indices: &Tensor::from_slice(&prompts),
            prompt_lens: &Tensor::from_slice(&lens),
            completion_lens: &Tensor::from_slice(&completion_lens),
            first_visible: first.map(|first| Tensor::from_slice(&first)).as_ref(),
        },
        scale,
    )
    .unwrap();
    for slot in 0..prompts.len() {
        let (prompt, len, before, at) =
            (prompts[slot], lens[slot], completion_lens[slot], slot as i64);
        let stored = completion_keys.get(at).select(1, before);
        assert_eq!(stored, k.get(at), "the new key lies in its place");
        let joined = |prompt: Tensor, completion: &Tensor| {
            let completion = completion.get(at).narrow(1, 0, before + 1);
            let first = first.map_or(0, |first| first[slot]);
            Tensor::cat(&[prompt.narrow(1, 0, len), completion], 1)
                .narrow(1, first, len + before + 1 - first)
                .to_kind(Kind::Double)
                .repeat_interleave_self_int(heads / kv_heads, 0, None)
        };
        // [heads, keys, dim]
        let keys = joined(prompt_keys.get(prompt).transpose(1, 2), &completion_keys);
        let values = joined(prompt_values.get(prompt), &completion_values);
        let query = q.get(at).to_kind(Kind::Double).unsqueeze(1);
        let scores =
            query.matmul(&keys.transpose(1, 2)) * scale.unwrap_or(1.0 / (dim as f64).sqrt());
        let expected = scores.softmax(-1, Kind::Double).matmul(&values).squeeze_dim(1);
        let distance = distance(&got.get(at), &expected);
        assert!(
            distance < tolerance(kind),
            "{kind:?} {heads}/{kv_heads} {dim}, slot {slot}: {distance}"
        );
    }
}

#[test]
fn packed_layers_as_by_libtorch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        // 63 rows: blocks of 16, 8, 4, 2 and 1.
        for (rows, input) in [(1, 1), (5, 32), (16, 47), (63, 8)] {
            let x = draw(&[rows, input], kind, 15);
            let weights = [24, 7, 40].map(|out| draw(&[out, input], kind, 16 + out as u64));
            let bias = draw(&[7], kind, 17);
            let packed = weights.each_ref().map(|w| PackedLinear::new(w).unwrap());
            let biases = [None, Some(&bias), None];
            let [a, b, c] = &packed;
            let got = packed_linears(&x, [(a, None), (b, biases[1]), (c, None)]).unwrap();
            for ((got, weight), bias) in got.iter().zip(&weights).zip(biases) {
                let bias = bias.map(|b| b.to_kind(Kind::Double));
                let weight = weight.to_kind(Kind::Double);
                let expected = x.to_kind(Kind::Double).linear(&weight, bias.as_ref());
                assert_eq!(got.kind(), kind);
                let distance = distance(got, &expected);
                assert!(distance < tolerance(kind), "{kind:?} {rows} {input}: {distance}");
            }
        }
    }
}

/// What a layer may have beside Qwen2's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    head_norms: bool,
    post_norms: bool,
    offset: f64,
    activation: Activation,
    pub(crate) pairing: Pairing,
    scale: Option<f64>,
    /// Rotated is the first of how many parts of a head.
    pub(crate) rotated: i64,
}

impl Form {
    pub(crate) fn applied<'a>(
        self,
        layer: DecodeLayer<'a>,
        head_norms: &'a [Tensor; 2],
        post_norms: &'a [Tensor; 2],
    ) -> DecodeLayer<'a> {
        let offset = self.offset;
        let norms = |weights: &'a [Tensor; 2]| {
            let [a, b] = weights;
            [(a, 1e-3), (b, 1e-2)].map(|(weight, eps)| Norm { weight, eps, offset })
        };
        DecodeLayer {
            norms: layer.norms.map(|norm| Norm { offset, ..norm }),
            head_norms: self.head_norms.then(|| norms(head_norms)),
            post_norms: self.post_norms.then(|| norms(post_norms)),
            activation: self.activation,
            pairing: self.pairing,
            scale: self.scale,
            ..layer
        }
    }
}

const QWEN2: Form = Form {
    head_norms: false,
    post_norms: false,
    offset: 0.0,
    activation: Activation::Silu,
    pairing: Pairing::Halves,
    scale: None,
    rotated: 1,
};

pub(crate) const FORMS: [Form; 5] = [
    QWEN2,
    // Qwen3.
    Form { head_norms: true, ..QWEN2 },
    // Qwen3.5's gated attention, without the gate.
    Form { head_norms: true, offset: 1.0, rotated: 4, ..QWEN2 },
    // GLM-4.1V.
    Form { post_norms: true, pairing: Pairing::Adjacent, rotated: 2, ..QWEN2 },
    // Gemma 3.
    Form {
        head_norms: true,
        post_norms: true,
        offset: 1.0,
        activation: Activation::GeluTanh,
        scale: Some(0.11),
        ..QWEN2
    },
];

struct Layer {
    norms: [Tensor; 2],
    post_norms: [Tensor; 2],
    head_norms: [Tensor; 2],
    form: Form,
    linears: Vec<(Tensor, Option<Tensor>, PackedCopy)>,
    head_dim: i64,
}

impl Layer {
    /// Queries, keys and values with a bias, as Qwen2 has them.
    fn new(form: Form, [hidden, heads, kv_heads, head_dim, inner]: [i64; 5], kind: Kind) -> Self {
        let (wide, keys) = (heads * head_dim, kv_heads * head_dim);
        let linear = |(i, [input, output]): (usize, [i64; 2])| {
            let weight = draw(&[output, input], Kind::Float, 30 + i as u64) / (input as f64).sqrt();
            let bias = (i < 3).then(|| draw(&[output], kind, 40 + i as u64));
            (weight.to_kind(kind), bias, PackedCopy::default())
        };
        let shapes = [
            [hidden, wide],
            [hidden, keys],
            [hidden, keys],
            [wide, hidden],
            [hidden, inner],
            [hidden, inner],
            [inner, hidden],
        ];
        Layer {
            norms: [50, 51].map(|key| draw(&[hidden], kind, key)),
            post_norms: [52, 53].map(|key| draw(&[hidden], kind, key)),
            head_norms: [54, 55].map(|key| draw(&[head_dim], kind, key)),
            form,
            linears: shapes.into_iter().enumerate().map(linear).collect(),
            head_dim,
        }
    }

    fn parts(&self) -> DecodeLayer<'_> {
        let linear = |i: usize| {
            let (weight, bias, packed) = &self.linears[i];
            LinearWeights { weight, bias: bias.as_ref(), packed: Some(packed) }
        };
        let layer = DecodeLayer::new(
            self.norms.each_ref().map(|weight| (weight, 1e-6)),
            std::array::from_fn(linear),
            self.head_dim,
        );
        self.form.applied(layer, &self.head_norms, &self.post_norms)
    }
}

/// What only the kernel does, or refuses.
fn whole(
    x: &Tensor,
    layer: &DecodeLayer<'_>,
    tables: [&Tensor; 2],
    keys: &KvView<'_>,
) -> Result<Tensor, TorchError> {
    by_kernel(x, layer, &packed(x, &layer.linears).expect("few rows"), tables, keys)
}

/// The last two are large enough for several threads.
#[test]
fn a_layer_is_its_parts_bit_for_bit() {
    for (kind, form) in [Kind::Float, Kind::BFloat16].map(|kind| FORMS.map(|f| (kind, f))).concat()
    {
        for (slots, shape) in [
            (1, [8, 2, 1, 8, 12]),
            (5, [37, 6, 2, 40, 41]),
            (16, [256, 8, 2, 32, 700]),
            (23, [200, 6, 3, 64, 333]),
            (9, [96, 7, 1, 128, 160]),
            (3, [128, 4, 4, 256, 64]),
        ] {
            let layer = Layer::new(form, shape, kind);
            let [hidden, _, kv_heads, dim, _] = shape;
            let x = draw(&[slots, hidden], kind, 60);
            let width = dim / form.rotated;
            let [cos, sin] = [61, 62].map(|key| draw(&[slots, width], kind, key));
            let prompt_keys = draw(&[2, kv_heads, dim, 48], kind, 63);
            let prompt_values = draw(&[2, kv_heads, 48, dim], kind, 64);
            let room = |key| draw(&[slots + 1, kv_heads, 24, dim], kind, key);
            let list = |f: &dyn Fn(i64) -> i64| {
                Tensor::from_slice(&(0..slots).map(f).collect::<Vec<i64>>())
            };
            let (prompts, lens, completion_lens) =
                (list(&|slot| slot % 2), list(&|slot| 30 + slot % 18), list(&|slot| slot * 7 % 24));
            let first = form.scale.map(|_| list(&|slot| slot * 5 % 31));
            let run = |by_kernel: bool| {
                let (completion_keys, completion_values) = (room(65), room(66));
                let keys = KvView {
                    prompt_keys: &prompt_keys,
                    prompt_values: &prompt_values,
                    completion_keys: &completion_keys,
                    completion_values: &completion_values,
                    prompt_indices: &prompts,
                    prompt_lens: &lens,
                    completion_lens: &completion_lens,
                    first_visible: first.as_ref(),
                };
                let y = if by_kernel {
                    whole(&x, &layer.parts(), [&cos, &sin], &keys).unwrap()
                } else {
                    decode_layer_reference(&x, &layer.parts(), [&cos, &sin], &keys)
                };
                [y, completion_keys, completion_values]
            };
            let got = run(true);
            assert_eq!(got[0].isfinite().all().int64_value(&[]), 1);
            for (i, (got, parts)) in got.iter().zip(run(false)).enumerate() {
                assert_eq!(*got, parts, "{kind:?} {form:?} {shape:?}, result {i}");
            }
            for threads in [1, 2] {
                let before = tch::get_num_threads();
                tch::set_num_threads(threads);
                let again = run(true);
                tch::set_num_threads(before);
                assert_eq!(again[0], got[0], "{threads} threads");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let kind = Kind::Float;
    let packed = PackedLinear::new(&draw(&[3, 4], kind, 1)).unwrap();
    assert!(packed_linears(&draw(&[2, 8], kind, 1), [(&packed, None)]).is_err());

    let layer = Layer::new(FORMS[4], [8, 2, 1, 4, 12], kind);
    let list = |n: i64| Tensor::zeros([n], (Kind::Int64, Device::Cpu));
    let (prompt_keys, prompt_values) = (draw(&[1, 1, 4, 6], kind, 2), draw(&[1, 1, 6, 4], kind, 2));
    let completions = draw(&[2, 1, 5, 4], kind, 2);
    let ids = list(2);
    let keys = KvView {
        prompt_keys: &prompt_keys,
        prompt_values: &prompt_values,
        completion_keys: &completions,
        completion_values: &completions,
        prompt_indices: &ids,
        prompt_lens: &ids,
        completion_lens: &ids,
        first_visible: None,
    };
    let table = draw(&[2, 4], kind, 3);
    let try_it = |x: &Tensor, parts: &DecodeLayer<'_>, table: &Tensor, keys: &KvView<'_>| {
        whole(x, parts, [table, table], keys).is_ok()
    };
    let x = draw(&[2, 8], kind, 4);
    assert!(try_it(&x, &layer.parts(), &table, &keys));
    assert!(!try_it(&draw(&[2, 7], kind, 4), &layer.parts(), &table, &keys));
    assert!(!try_it(&draw(&[3, 8], kind, 4), &layer.parts(), &table, &keys));
    assert!(!try_it(&x.to_kind(Kind::BFloat16), &layer.parts(), &table, &keys));
    assert!(!try_it(&x, &layer.parts(), &draw(&[2, 6], kind, 3), &keys));
    let few = list(1);
    assert!(!try_it(&x, &layer.parts(), &table, &KvView { completion_lens: &few, ..keys }));
    let mut swapped = layer.parts();
    swapped.linears.swap(4, 6);
    assert!(!try_it(&x, &swapped, &table, &keys));
    let odd = DecodeLayer { head_dim: 3, ..layer.parts() };
    assert!(!try_it(&x, &odd, &table, &keys));
    let (norms, head_norms) = (layer.parts().norms, layer.parts().head_norms);
    assert!(!try_it(&x, &DecodeLayer { post_norms: head_norms, ..layer.parts() }, &table, &keys));
    let wide = DecodeLayer { head_norms: Some(norms), ..layer.parts() };
    assert!(!try_it(&x, &wide, &table, &keys));
}

/// Each of a layer's parts in f64, against the kernel in f32.
#[test]
fn a_layer_as_by_libtorch() {
    for form in FORMS {
        let shape @ [hidden, heads, kv_heads, dim, _] = [48, 6, 2, 16, 40];
        let slots = 3;
        let layer = Layer::new(form, shape, Kind::Float);
        let x = draw(&[slots, hidden], Kind::Float, 60);
        let half = draw(&[slots, dim / form.rotated / 2], Kind::Float, 61);
        let angles = Tensor::cat(&[&half, &half], 1);
        let [cos, sin] = [angles.cos(), angles.sin()];
        let [prompt_keys, prompt_values] =
            [[1, kv_heads, dim, 8], [1, kv_heads, 8, dim]].map(|size| draw(&size, Kind::Float, 63));
        let [completion_keys, completion_values] =
            [65, 66].map(|key| draw(&[slots, kv_heads, 1, dim], Kind::Float, key));
        let (zeros, eights) = (Tensor::from_slice(&[0i64; 3]), Tensor::from_slice(&[8i64; 3]));
        let kv = KvView {
            prompt_keys: &prompt_keys,
            prompt_values: &prompt_values,
            completion_keys: &completion_keys,
            completion_values: &completion_values,
            prompt_indices: &zeros,
            prompt_lens: &eights,
            completion_lens: &zeros,
            first_visible: None,
        };
        let parts = layer.parts();
        let got = whole(&x, &parts, [&cos, &sin], &kv).unwrap();

        let exact = |x: &Tensor| x.to_kind(Kind::Double);
        let norm = |x: &Tensor, norm: Norm<'_>| {
            let mean = x.square().mean_dim(-1i64, true, Kind::Double);
            x * (mean + norm.eps).rsqrt() * (exact(norm.weight) + norm.offset)
        };
        let linear = |x: &Tensor, i: usize| {
            let LinearWeights { weight, bias, .. } = parts.linears[i];
            x.linear(&exact(weight), bias.map(exact))
        };
        let after = |x: Tensor, i: usize| match parts.post_norms {
            Some(norms) => norm(&x, norms[i]),
            None => x,
        };
        let x = exact(&x);
        let y = norm(&x, parts.norms[0]);
        let [mut q, mut k, v] = [0, 1, 2].map(|i| linear(&y, i).view([slots, -1, dim]));
        if let Some([of_q, of_k]) = parts.head_norms {
            (q, k) = (norm(&q, of_q), norm(&k, of_k));
        }
        let turn = |x| crate::rotate_reference(x, [&exact(&cos), &exact(&sin)], form.pairing);
        let repeat = |x: Tensor| x.repeat_interleave_self_int(heads / kv_heads, 1, None);
        // [slots, heads, 9, dim]
        let joined = |prompt: Tensor, own: Tensor| {
            let prompt = prompt.expand([slots, kv_heads, 8, dim], false);
            repeat(Tensor::cat(&[prompt, own.unsqueeze(2)], 2))
        };
        let keys = joined(exact(&prompt_keys).transpose(2, 3), turn(&k));
        let values = joined(exact(&prompt_values), v);
        let scale = form.scale.unwrap_or(0.25);
        let scores = turn(&q).unsqueeze(2).matmul(&keys.transpose(2, 3)) * scale;
        let seen = scores.softmax(-1, Kind::Double).matmul(&values).reshape([slots, -1]);
        let x = &x + after(linear(&seen, 3), 0);
        let y = norm(&x, parts.norms[1]);
        let gate = crate::activate_reference(&linear(&y, 4), form.activation);
        let expected = &x + after(linear(&(gate * linear(&y, 5)), 6), 1);
        let far = distance(&got, &expected);
        assert!(far < 5e-6, "{form:?}: {far}");
    }
}
