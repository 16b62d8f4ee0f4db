//! NVIDIA's driver and its cards, and whether this libtorch can use them.

use std::time::Duration;

use base::console::size;
use gpu::{Build, CardFacts, DriverError, Machine, Nvml, Refusal};

use super::libtorch::LibtorchFacts;
use super::section::Section;
use super::within::within;

/// Drivers wake their cards one after another.
const LIMIT: Duration = Duration::from_secs(20);

/// What the driver says; `facts` are those of libtorch, where there is one.
pub fn section(facts: Option<&LibtorchFacts>) -> Section {
    let mut section = Section::new("cards");
    let Some(machine) = within(LIMIT, Machine::read) else {
        section.fact("driver", "does not answer");
        section.problem(
            format!("NVIDIA's driver does not answer within {} s", LIMIT.as_secs()),
            "`nvidia-smi` hangs too: restart the machine; `dmesg` may name a card that fell off the bus; --device cpu does without a GPU",
        );
        return section;
    };
    section.fact("driver", driver(&machine));
    if let Some(visible) = &machine.visible {
        section.fact("CUDA_VISIBLE_DEVICES", format!("`{visible}`"));
    }
    if !machine.device_files.is_empty() {
        section.fact("device files", machine.device_files.join(", "));
    }
    let cards = machine.driver.as_ref().map_or(&[][..], |driver| &driver.cards);
    for (index, card) in cards.iter().enumerate() {
        section.fact(format!("cuda:{index}"), of_card(&machine, index, card));
    }
    let links = within(LIMIT, {
        let cards = cards.to_vec();
        move || links(&cards)
    });
    for (name, link) in links.unwrap_or_default() {
        section.fact(name, link);
    }
    for refusal in refusals(&machine, cards.len(), facts) {
        section.error(&refusal);
    }
    section
}

fn driver(machine: &Machine) -> String {
    let own = machine.driver_version.as_deref().unwrap_or("version not told");
    match &machine.driver {
        Ok(driver) => format!("{own}, supports CUDA up to {}", driver.cuda),
        Err(DriverError::NoLibrary { cause }) => format!("none ({cause})"),
        Err(error) => format!("{own}, fails: {error}"),
    }
}

fn of_card(machine: &Machine, index: usize, card: &CardFacts) -> String {
    let bf16 = if machine.check_bf16(index).is_ok() { "bf16" } else { "no bf16" };
    let flash = match machine.has_flash_attention(index) {
        true => "flash attention",
        false => "no flash attention (it is padded: slower, more memory)",
    };
    format!(
        "{}, {}, compute capability {}, {bf16}, {flash}",
        card.name,
        size(card.memory_bytes),
        card.capability
    )
}

/// What lies between each two cards.
fn links(cards: &[CardFacts]) -> Vec<(String, String)> {
    let nvml = (cards.len() > 1).then(Nvml::open).flatten();
    let mut links = Vec::new();
    for (a, card) in cards.iter().enumerate() {
        for (b, other) in cards.iter().enumerate().skip(a + 1) {
            let link = nvml.as_ref().and_then(|nvml| nvml.between(&card.bus, &other.bus));
            let link = link.map_or("link not told".to_owned(), |link| link.to_string());
            let reads = card.peers.get(b).zip(other.peers.get(a));
            let peers = match reads {
                Some((true, true)) => "read each other's memory",
                _ => "do not read each other's memory",
            };
            links.push((format!("cuda:{a} - cuda:{b}"), format!("{link}, {peers}")));
        }
    }
    links
}

/// Why cards cannot be used. A machine without a GPU lacks nothing.
fn refusals(machine: &Machine, num_cards: usize, facts: Option<&LibtorchFacts>) -> Vec<Refusal> {
    // Without libtorch the driver alone can be wrong.
    let build =
        facts.map_or(Build { has_cuda_library: true, ..Build::default() }, LibtorchFacts::build);
    let seen = facts.map_or(num_cards, |facts| facts.num_cards);
    if num_cards == 0 {
        let build = Build { has_cuda_library: true, ..build };
        let refusal = machine.why_not(&build, 0, seen);
        let hides_cards = machine.visible.is_some() && matches!(refusal, Refusal::NoCard { .. });
        return (hides_cards || !refusal.is_absence()).then_some(refusal).into_iter().collect();
    }
    if seen < num_cards {
        return vec![machine.why_not(&build, seen, seen)];
    }
    (0..num_cards).filter_map(|index| machine.check_card(&build, index).err()).collect()
}
