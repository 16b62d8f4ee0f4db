//! Weights that files hold in another form than layers take them: loaded, trained, saved.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use models::names::{Names, Reform};
use models::parameters::Builder;
use models::{
    Family, LoadOptions, ModelError, Parameter, Parameters, Part, TrainedParts, exact_weights,
    save_parameters,
};
use serde_json::json;
use tch::{Kind, Tensor, no_grad};
use torch::{WeightFiles, read_tensors, write_tensors};

use crate::support::assert_names;

/// A family that has every form.
static FAMILY: Family = Family {
    model_type: "of_this_test",
    names: Names {
        prefixes: &[("old.", "new.")],
        reforms: &[
            Reform::Split {
                stored: "new.*.qkv.weight",
                own: &["new.*.q.weight", "new.*.k.weight", "new.*.v.weight"],
            },
            Reform::Concatenated {
                stored: &["new.*.gate.weight", "new.*.up.weight"],
                own: "new.*.gate_up.weight",
            },
            Reform::Transposed { stored: "new.projector", own: "new.projector.weight" },
            Reform::Stacked { stored: "new.experts.#.weight", own: "new.experts.weight" },
        ],
        passed_over: &["mtp."],
    },
    part_of: |_| Part::Language,
    vision_modules: &[Part::Vision],
    read_config: |_| Err(ModelError::NoAdapter),
    tiny_config: |_| json!({}),
};

const SHAPES: [(&str, &[i64]); 8] = [
    ("old.0.qkv.weight", &[8, 3]),
    ("old.0.gate.weight", &[5, 3]),
    ("old.0.up.weight", &[5, 3]),
    ("old.projector", &[3, 4]),
    ("old.experts.0.weight", &[2, 3]),
    ("old.experts.1.weight", &[2, 3]),
    ("old.norm.weight", &[3]),
    ("mtp.layer.weight", &[2]),
];

/// The weights as layers take them.
const OWN: [(&str, &[i64]); 7] = [
    ("new.0.q.weight", &[4, 3]),
    ("new.0.k.weight", &[2, 3]),
    ("new.0.v.weight", &[2, 3]),
    ("new.0.gate_up.weight", &[10, 3]),
    ("new.projector.weight", &[4, 3]),
    ("new.experts.weight", &[2, 2, 3]),
    ("new.norm.weight", &[3]),
];

fn numbers(shape: &[i64], first: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Float, tch::Device::Cpu)) + first).view(shape)
}

fn write(folder: &Path, shapes: &[(&str, &[i64])]) {
    let tensors: Vec<(String, Tensor)> = (0..)
        .zip(shapes)
        .map(|(i, (name, shape))| ((*name).to_owned(), numbers(shape, 100 * i)))
        .collect();
    write_tensors(&folder.join("model.safetensors"), &tensors).unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
}

fn load(folder: &Path) -> Result<(Vec<Tensor>, Parameters), ModelError> {
    let files = WeightFiles::open(folder)?;
    let device = torch::device_of_tests();
    let options = LoadOptions { kind: Kind::Float, device, trained: TrainedParts::ALL };
    let mut builder = Builder::new(&FAMILY, &files, folder, options, None);
    let taken = OWN.iter().map(|(name, shape)| builder.take(name, shape));
    let taken = taken.collect::<Result<Vec<_>, _>>()?;
    Ok((taken, builder.finish()?))
}

#[test]
fn weights_of_every_form_are_loaded_and_saved() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &SHAPES);
    let (taken, parameters) = load(folder.path()).unwrap();
    let stored = read_tensors(&folder.path().join("model.safetensors")).unwrap();
    let qkv = &stored["old.0.qkv.weight"];
    let rows = |from, len| qkv.narrow(0, from, len);
    let joined = |a: &str, b: &str| [stored[a].shallow_clone(), stored[b].shallow_clone()];
    let expected = [
        rows(0, 4),
        rows(4, 2),
        rows(6, 2),
        Tensor::cat(&joined("old.0.gate.weight", "old.0.up.weight"), 0),
        stored["old.projector"].tr(),
        Tensor::stack(&joined("old.experts.0.weight", "old.experts.1.weight"), 0),
        stored["old.norm.weight"].shallow_clone(),
    ];
    for ((got, expected), (name, _)) in taken.iter().zip(&expected).zip(OWN) {
        assert!(got.to_device(tch::Device::Cpu).equal(expected), "{name}");
    }

    no_grad(|| {
        parameters.list.iter().for_each(|p| drop(p.value.shallow_clone().g_add_scalar_(0.5)))
    });
    let target = tempfile::tempdir().unwrap();
    let asked = RefCell::new(Vec::new());
    let exact = |parameter: &Parameter| {
        asked.borrow_mut().push(parameter.name.clone());
        parameter.master_weight()
    };
    let (names, source) = (&FAMILY.names, folder.path());
    save_parameters(names, &parameters, source, target.path(), &exact).unwrap();
    let expected = exact_weights(names, &parameters, source).unwrap();
    let expected: Vec<&str> = expected.iter().map(|p| p.name.as_str()).collect();
    assert!(expected.len() > 6 && *asked.borrow() == expected, "{asked:?} {expected:?}");
    let saved = read_tensors(&target.path().join("model.safetensors")).unwrap();
    let names: BTreeMap<_, _> = SHAPES.into_iter().collect();
    assert_eq!(saved.len(), names.len());
    for (name, tensor) in &saved {
        let step = if name.starts_with("mtp.") { 0.0 } else { 0.5 };
        assert!(tensor.equal(&(&stored[name] + step)), "{name}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    for (name, shape, expected) in [
        (
            "old.0.qkv.weight",
            Some(&[9i64, 3][..]),
            "weight old.0.qkv.weight: expected 8 rows, got [9, 3]",
        ),
        (
            "old.0.qkv.weight",
            Some(&[7, 3]),
            "weight old.0.qkv.weight: [7, 3] does not hold new.0.v.weight [2, 3]",
        ),
        ("old.0.up.weight", None, "weight old.0.up.weight: missing"),
        (
            "old.0.up.weight",
            Some(&[4, 3]),
            "weight new.0.gate_up.weight: expected [10, 3], got [9, 3]",
        ),
        ("old.projector", Some(&[4, 3]), "weight old.projector: expected [3, 4], got [4, 3]"),
        ("old.experts.1.weight", None, "weight old.experts.1.weight: missing"),
        (
            "old.experts.2.weight",
            Some(&[2, 3]),
            "weight old.experts.2.weight: [2, 3] does not hold new.experts.weight",
        ),
    ] {
        let mut shapes: Vec<(&str, &[i64])> =
            SHAPES.into_iter().filter(|(other, _)| *other != name).collect();
        shapes.extend(shape.map(|shape| (name, shape)));
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &shapes);
        let message = load(folder.path()).map(drop).unwrap_err().to_string();
        assert_names(&message, &[expected]);
    }
}
