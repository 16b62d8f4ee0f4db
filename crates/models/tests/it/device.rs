//! What training asks of a GPU, counted by the stand-in for CUDA (`tools/stand_in`), which must be the CUDA library of this process.

use models::model::forward;
use models::qwen2_5_vl::Config;
use models::{
    Checkpointing, FamilyConfig, InputsBuilder, LoadOptions, PackedAttention, TrainedParts,
};
use tch::{Device, Kind, Tensor};
use torch::{FastPath, set_enabled};

fn launches() -> i64 {
    assert!(torch::load_cuda(), "no CUDA library");
    torch::device_counts().expect("the stand-in for CUDA").launches
}

/// Launches of forward and backward of a batch, of a model of so many text layers.
fn step(layers: usize, kind: Kind) -> i64 {
    launches();
    let device = Device::Cuda(0);
    let mut config = Config::read(&testing::checkpoint("nested")).unwrap();
    config.text.num_hidden_layers = layers;
    let options = LoadOptions { kind, device, trained: TrainedParts::ALL };
    let model = (&config as &dyn FamilyConfig).blank(options, None).unwrap();
    let mut builder = InputsBuilder::new(&*model);
    for len in [5, 9] {
        let prompt = base::Prompt { ids: (0..len).collect(), images: Vec::new() };
        builder.push_prompt(&prompt).unwrap();
    }
    let batch = builder.build();
    let attention = PackedAttention::new(&batch.layout, true, kind, device);
    let pass = batch.pass_inputs(&*model);
    let run = || {
        let mut checkpointing = Checkpointing::new(false);
        let hidden = forward(&*model, &mut checkpointing, &batch, &pass, &attention);
        let loss: Tensor = hidden.sum(Kind::Float);
        loss.backward();
    };
    // As a step does: each gradient is taken as soon as it is there.
    let take = || {
        model.parameters().list.iter().for_each(|p| drop(torch::take_grad(&p.value).unwrap()));
    };
    run();
    take();
    let before = launches();
    run();
    launches() - before
}

fn of_layer(kind: Kind) -> i64 {
    let [few, many] = [2, 6].map(|layers| step(layers as usize, kind));
    assert_eq!((many - few) % 4, 0, "the same of each layer");
    (many - few) / 4
}

#[test]
#[ignore = "needs the stand-in for CUDA: make test-device"]
fn a_layer_of_training_launches_half_of_what_the_plain_operations_do() {
    let paths = [FastPath::FusedNorm, FastPath::Rotation, FastPath::ResidualProduct];
    // In f32 attention is padded, which takes more of its own.
    for (kind, limit) in [(Kind::BFloat16, 0.5), (Kind::Float, 0.6)] {
        let fast = of_layer(kind);
        paths.iter().for_each(|&path| set_enabled(path, false));
        let slow = of_layer(kind);
        paths.iter().for_each(|&path| set_enabled(path, true));
        println!("{kind:?}: {fast} a layer, plain {slow}");
        assert!(fast as f64 <= limit * slow as f64, "{kind:?}: {fast}, plain {slow}");
    }
}
