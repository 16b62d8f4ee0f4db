//! The texts that the demo's tokenizer is built from.

use tiny::scenes::all_expressions;
use tiny::tokenizer::Words;

use super::dataset::QUESTION;

const DEMAND: &str = " First output the thinking process in <think> </think> tags and then output the final answer in <answer> </answer> tags. Output the final answer in JSON format.";
const PLAIN_DEMAND: &str = " Please provide the bounding box coordinate in JSON format.";

/// The sentences of its prompts, and the words of its expressions and answers.
pub fn tokenizer_corpus() -> Words {
    let mut texts = vec![QUESTION.concat(), DEMAND.to_owned(), PLAIN_DEMAND.to_owned()];
    for expression in all_expressions() {
        // As in a question, and as a thinking text begins.
        texts.push(format!("{expression}."));
        let name = expression.trim_start_matches("the ");
        texts.push(format!("<think>{name}</think><answer>{{\"bbox\": [1, 2, 3, 4]}}</answer>"));
    }
    Words { sentences: [QUESTION[0], DEMAND, PLAIN_DEMAND].map(str::to_owned).into(), texts }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use models::{LoadOptions, TrainedParts, VisionLanguageModel, load_model};
    use tch::{Device, Kind};
    use tiny::model::{self, ModelShape};
    use tiny::scenes::IMAGE_PX;
    use tiny::tokenizer::{PATCH_SIZE, write};
    use tokenizers::Tokenizer;

    use super::*;

    fn tokens(bpe: &Tokenizer, text: &str) -> Vec<String> {
        let ids = bpe.encode(text, false).unwrap();
        assert_eq!(bpe.decode(ids.get_ids(), false).unwrap(), text);
        ids.get_ids().iter().map(|&id| bpe.decode(&[id], false).unwrap()).collect()
    }

    #[test]
    fn numbers_words_and_prompt_sentences_are_one_token_each() {
        let folder = tempfile::tempdir().unwrap();
        let ids = write(folder.path(), &tokenizer_corpus()).unwrap();
        let bpe = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        assert!(ids.vocab_size < 1024, "{}", ids.vocab_size);
        for number in 0..=IMAGE_PX {
            assert_eq!(tokens(&bpe, &number.to_string()).len(), 1, "{number}");
        }
        let completion = "<think>red disc</think><answer>{\"bbox\": [8, 16, 24, 40]}</answer>";
        let expected = "<think|>red| disc|</|think|><|answer|>{\"|bbox|\":| [|8|, |16|, |24|, |40|]}</|answer|>";
        assert_eq!(tokens(&bpe, completion).join("|"), expected);
        assert_eq!(tokens(&bpe, "[8, 16, 24, 40]").join("|"), "[|8|, |16|, |24|, |40|]");
        let question = format!("{}the red disc.{DEMAND}", QUESTION[0]);
        let expected = [QUESTION[0], "the", " red", " disc", ".", DEMAND];
        assert_eq!(tokens(&bpe, &question), expected);
        let turn = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n";
        assert_eq!(tokens(&bpe, turn).len(), 9);
        // Whatever is not in the corpus still goes in and out.
        tokens(&bpe, "Größe 1234 ✓ <|im_end|>");
    }

    #[test]
    fn the_same_files_every_time() {
        let [a, b] = [0, 1].map(|_| tempfile::tempdir().unwrap());
        assert_eq!(
            write(a.path(), &tokenizer_corpus()).unwrap(),
            write(b.path(), &tokenizer_corpus()).unwrap()
        );
        for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert_eq!(
                fs::read(a.path().join(name)).unwrap(),
                fs::read(b.path().join(name)).unwrap(),
                "{name}"
            );
        }
    }

    fn load(folder: &std::path::Path) -> Box<dyn VisionLanguageModel> {
        let options =
            LoadOptions { kind: Kind::Float, device: Device::Cpu, trained: TrainedParts::NONE };
        load_model(folder, options).unwrap()
    }

    #[test]
    fn the_folder_loads_as_qwen2_5_vl() {
        let folder = tempfile::tempdir().unwrap();
        model::write(folder.path(), &ModelShape::DEMO, &tokenizer_corpus(), 1).unwrap();
        let model = load(folder.path());
        assert_eq!(model.family().model_type, "qwen2_5_vl");
        assert_eq!(model.patch_dim(), 6 * (PATCH_SIZE as usize).pow(2));
        let parameters = model.parameters().num_elements();
        assert!((500_000..800_000).contains(&parameters), "{parameters}");
    }

    #[test]
    fn weights_follow_the_seed_and_the_fan_in() {
        let folders = [1, 1, 2].map(|seed| {
            let folder = tempfile::tempdir().unwrap();
            model::write(folder.path(), &ModelShape::DEMO, &tokenizer_corpus(), seed).unwrap();
            folder
        });
        let bytes =
            [0, 1, 2].map(|i| fs::read(folders[i].path().join("model.safetensors")).unwrap());
        assert!(bytes[0] == bytes[1] && bytes[0] != bytes[2]);
        let model = load(folders[0].path());
        let weight = |name: &str| model.parameters().get(name).unwrap().value.shallow_clone();
        let down = weight("model.layers.0.mlp.down_proj.weight");
        let std = down.std(true).double_value(&[]) * (ModelShape::DEMO.text_mlp as f64).sqrt();
        // 49,152 draws: the standard error of their standard deviation is 0.003.
        assert!((std - 1.0).abs() < 0.015, "{std}");
        assert!(down.mean(Kind::Float).double_value(&[]).abs() < 0.001);
        assert_eq!(weight("visual.blocks.0.norm1.weight").mean(Kind::Float).double_value(&[]), 1.0);
        assert_eq!(weight("visual.blocks.1.mlp.up_proj.bias").abs().max().double_value(&[]), 0.0);
    }
}
