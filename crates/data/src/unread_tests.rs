//! Which keys are reported and which are left alone.

use super::*;
use serde_json::json;

const TURNS: &str = r#"[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]"#;

fn row(others: Value) -> Map<String, Value> {
    let Value::Object(mut row) = others else { panic!("an object") };
    let turns: Value = serde_json::from_str(TURNS).expect("turns");
    row.entry("conversations").or_insert(turns);
    row
}

fn whys(others: Value) -> Vec<(String, Why)> {
    let unread = unread_keys(&row(others), &ReadKeys::TRAINING).into_iter();
    unread.map(|found| (found.key, found.why)).collect()
}

#[test]
fn images_under_other_names_are_found() {
    for key in [
        "images",
        "Image",
        "IMAGE",
        "image ",
        "image_path",
        "image_paths",
        "imagePath",
        "img",
        "imgs",
        "img_path",
        "image_file",
        "image-file",
        "image_filename",
        "image_url",
        "picture",
        "pictures",
        "Photo",
        "image_1",
        "image2",
        "iamge",
        "imagess",
        "screenshot",
        "image_base64",
        "imagefile",
        "image_name",
        "path",
        "file_name",
    ] {
        let hidden = hidden_media(&row(json!({ key: "a.png" })), &ReadKeys::TRAINING);
        assert_eq!(hidden.map(|found| found.why), Some(Why::Image), "{key}");
    }
    for (key, value, why) in [
        ("images", json!([{"bytes": null, "path": "a.png"}]), Why::Image),
        ("videos", json!(["a.mp4"]), Why::OtherMedia),
        ("video_path", json!("a.mp4"), Why::OtherMedia),
        ("audio", json!({"path": "a.wav"}), Why::OtherMedia),
        ("parts", json!([{"type": "text"}, {"type": "image"}]), Why::Image),
        ("messages", json!([{"content": [{"type": "image_url"}]}]), Why::Image),
        ("scan", json!("data:image/png;base64,AAAA"), Why::Image),
    ] {
        let hidden = hidden_media(&row(json!({ key: value, "image": null })), &ReadKeys::TRAINING);
        assert_eq!(hidden.map(|found| found.why), Some(why), "{key}");
    }
    let in_turn =
        json!([{"from": "human", "value": "q", "image": "a.png"}, {"from": "gpt", "value": "a"}]);
    let hidden = hidden_media(&row(json!({ "conversations": in_turn })), &ReadKeys::TRAINING);
    assert_eq!(hidden.expect("found").key, "conversations[].image");
}

#[test]
fn columns_of_the_owner_are_let_be() {
    let harmless = json!({
        "id": "a.png", "task": "rec", "image_id": 7, "image_size": [4, 4], "image_width": 4, "num_images": 2,
        "image_source": "coco", "image_caption": "a cup", "images": [], "videos": null, "img": "", "meta": {"x": 1},
        "source": "vg", "solution": "<answer> a </answer>", "problem": "q", "dataset_name": "x", "bbox": [1, 2],
        "kto_tag": true, "tools": "[]", "objects": [{"label": "cup"}], "image_grid_thw": [1, 2, 2], "height": 4,
        "normal_caption": "x", "label": 3, "imagination": "y", "weight": 0.5, "conversation_id": "c1",
    });
    assert_eq!(whys(harmless), []);
}

#[test]
fn beside_images_only_others_are_told() {
    let same = json!({"image": "x/a.png", "images": ["a.png"], "image_path": "/data/x/a.png", "file_name": "z.png"});
    assert_eq!(whys(same), []);
    let other =
        json!({"image": "a.png", "image_2": "b.png", "img": ["a.png", "c.png"], "video": "a.mp4"});
    let told = ["image_2", "img"].map(|key| (key.to_owned(), Why::Image));
    let [first, second] = told;
    assert_eq!(whys(other), [first, second, ("video".to_owned(), Why::OtherMedia)]);
    let hidden = hidden_media(&row(json!({"image": "a.png", "img": "b.png"})), &ReadKeys::TRAINING);
    assert_eq!(hidden, None);
}

#[test]
fn slips_and_what_changes_the_meaning_are_told() {
    for key in [
        "accu_reward_methods",
        "Accu_Reward_Method",
        "accu-reward-method",
        "accu_reward_mehtod",
        "reward_method",
    ] {
        let near = Why::Near("accu_reward_method");
        assert_eq!(whys(json!({ key: "math" })), [(key.to_owned(), near)], "{key}");
    }
    for (key, value) in [
        ("system", json!("Be brief.")),
        ("tools", json!([{"name": "f"}])),
        ("history", json!([["q", "a"]])),
        ("rejected", json!("b")),
        ("kto_tag", json!(false)),
        ("loss", json!(false)),
        ("messages", json!([{"role": "user", "content": "q"}])),
    ] {
        assert_eq!(whys(json!({ key: value })), [(key.to_owned(), Why::Meaning)], "{key}");
    }
    let turns = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "reasoning_content": "hm"}]);
    let told = whys(json!({ "conversations": turns }));
    assert_eq!(told, [("conversations[].reasoning_content".to_owned(), Why::Meaning)]);
}

#[test]
fn what_was_meant_by_a_missing_key_is_found() {
    for (key, other) in [
        ("conversations", "Conversations"),
        ("conversations", "converations"),
        ("conversations", "conversation"),
        ("conversations", "messages"),
        ("solution", "solutions"),
        ("solution", "Solution"),
        ("prompt", "question"),
        ("completion", "completions"),
    ] {
        let row = Map::from_iter([(other.to_owned(), json!("x")), ("id".to_owned(), json!(1))]);
        assert_eq!(meant(key, &row).as_deref(), Some(other));
    }
    let row = Map::from_iter([("resolution".to_owned(), json!("x"))]);
    assert_eq!(meant("solution", &row), None);
}

/// The web page or file that an image came from is no reason to warn.
#[test]
fn addresses_on_the_web_are_let_be() {
    let address = "https://farm4.example.com/1234_b.jpg";
    for shown in [
        json!({"image": "a.png", "url": address}),
        json!({"image": "a.png", "image_url": address, "urls": [address]}),
        json!({"url": address, "src": "http://example.com/page.png"}),
    ] {
        assert_eq!(whys(shown.clone()), [], "{shown}");
    }
    for hidden in [
        json!({ "image_url": address }),
        json!({"url": "pictures/a.png"}),
        json!({ "path": address }),
    ] {
        assert!(hidden_media(&row(hidden.clone()), &ReadKeys::TRAINING).is_some(), "{hidden}");
    }
    let beside = whys(json!({"image": "a.png", "image_path": "b.png"}));
    assert_eq!(beside, [("image_path".to_owned(), Why::Image)]);
}
