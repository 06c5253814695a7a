//! Writes the first inputs of every target: `corpus/TARGET/FIXTURE`.

use std::{fs, path::Path};

use anyhow::Result;
use hyperferry_fuzz::{parts, slim_streams};
use hyperferry_testkit::Fixture;
use hyperferry_translate::{
    refusal::Policy,
    source::{CheckpointSink, Source},
};

fn main() -> Result<()> {
    for (name, stream) in slim_streams("xen")? {
        let (_, context, emulator) = parts(&stream)?;
        seed("xen_stream", &name, &stream)?;
        seed("normalise", &name, &stream)?;
        seed("hvm_context", &name, &context)?;
        seed("emulator_context", &name, &emulator)?;
        seed("checkpoint", &name, &checkpoint(&stream)?)?;
    }
    for (name, stream) in slim_streams("qemu")? {
        seed("qemu_stream", &name, &stream)?;
        seed("normalise", &name, &stream)?;
    }
    // One with memory in it, as short as there is.
    let stream = Fixture::named("xen/witness-1vcpu")?.stream()?;
    seed("xen_stream", "with-pages", &stream[..(1 << 20).min(stream.len())])
}

fn checkpoint(stream: &[u8]) -> Result<Vec<u8>> {
    let source = Source::open(stream, Policy::default())?;
    let sink = CheckpointSink::new(Vec::new(), source.outline())?;
    let taken = source.pump(|_, _| Ok(()))?;
    Ok(sink.finish(&taken.vm, &taken.held)?)
}

fn seed(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}
