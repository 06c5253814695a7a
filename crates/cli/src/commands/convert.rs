//! `hyperferry convert`: one format into another.

use hyperferry_kvm_state as kvm;
use hyperferry_relay::{
    endpoint::{Output, open_input, open_output},
    home::{Home, WayHome},
    journal::Journal,
    progress::{Precopy, Progress},
    session::{self, Translated},
};
use hyperferry_translate::{
    qemu::args,
    report::{Fate, FieldFate, Report},
    source::CheckpointSink,
    xen::{self, XenSink},
};
use hyperferry_vm_model::PAGE_SIZE;

use super::{Intake, open};
use crate::{
    args::{Convert, Target, Words},
    destination::say_what_to_map,
    exit::{self, Error, Result},
    host, progress,
    report::Account,
    runtime,
};

/// Translates; the output appears once all of it is there and nothing was refused.
pub(super) fn run(arguments: &Convert, words: &Words) -> Result<u8> {
    let to = match arguments.to {
        Target::Qemu => "qemu",
        Target::Kvm => "kvm",
        Target::Model => "model",
        Target::Xen => "xen",
    };
    let account = Account { file: arguments.loss.report.as_deref(), to, verbose: words.verbose > 0 };
    let policy = arguments.loss.allow.policy();
    if arguments.home.is_some() && arguments.to != Target::Xen {
        return Err(Error::Usage("--home is about a guest that goes back to Xen: --to xen".to_owned()));
    }
    let named = arguments.home.as_deref().map(Home::read).transpose()?;
    let source = account.of(open(&arguments.input, policy))?;
    let shown = progress::start(words, &source.outline().config.name)?;
    let work = runtime::unless_interrupted(translate(arguments, source, named, &shown.progress));
    let made = runtime::run(work);
    shown.clear();
    let (output, translated) = account.of(made)?;
    // A refusal or a signal came before this; from here on the output exists.
    output.commit()?;
    shown.done();
    account.tell(&translated.report)?;
    say!("{} pages of {}", translated.pages, translated.vm.origin);
    Ok(exit::OK)
}

async fn translate(
    arguments: &Convert,
    source: Intake,
    named: Option<Home>,
    progress: &Progress,
) -> Result<(Output, Translated)> {
    if arguments.to != Target::Qemu {
        return match arguments.to {
            Target::Xen => to_xen(arguments, source, named, progress).await,
            Target::Kvm => to_kvm(source, open_output(&arguments.output)?, progress).await,
            _ => to_model(source, open_output(&arguments.output)?, progress).await,
        };
    }
    let mut landing = arguments.destination.landing(arguments.loss.allow.policy())?;
    say_what_to_map(source.outline(), &landing.options);
    let admitted = arguments.destination.admit(&mut landing, source.outline()).await?;
    let output = open_output(&arguments.output)?;
    Ok(landing.write(source, admitted, output, progress).await?)
}

/// The neutral model with memory.
async fn to_model(source: Intake, output: Output, progress: &Progress) -> Result<(Output, Translated)> {
    let counter = progress.clone();
    let made = session::write(output, progress, move |out| {
        let outline = source.outline().clone();
        counter.expect(Precopy::of_xen(outline.memory.size() / PAGE_SIZE));
        let mut sink = CheckpointSink::new(out, &outline)?;
        let taken = source.pump(|addresses, data| {
            counter.pages(session::page_numbers(addresses));
            sink.pages(addresses, data)
        })?;
        sink.finish(&taken.vm, &taken.held)?;
        Ok::<_, hyperferry_translate::Error>(Translated {
            vm: taken.vm,
            report: taken.report,
            pages: taken.pages,
        })
    });
    Ok(made.await?)
}

/// A save stream for a Xen host, in the dialect of the template.
async fn to_xen(
    arguments: &Convert,
    source: Intake,
    named: Option<Home>,
    progress: &Progress,
) -> Result<(Output, Translated)> {
    let mut outline = source.outline().clone();
    args::know_devices(&outline)?;
    let from_xen = outline.remainder.as_ref().is_some_and(|remainder| remainder.from_xen);
    let journal = Journal::existing(&arguments.journal);
    let way = WayHome::find(&outline, from_xen, named, journal.as_ref())?;
    way.give(&mut outline);
    let template = match &arguments.template {
        Some(path) => xen::Template::from_stream(open_input(path)?.reader)?,
        None => xen::Template::bundled(way.home().map_or(&outline.config, Home::config))?,
    };
    let chosen = arguments.template.is_some();
    let relocation = arguments.destination.relocation();
    let policy = arguments.loss.allow.policy();
    let output = open_output(&arguments.output)?;
    let counter = progress.clone();
    let made = session::write(output, progress, move |out| {
        counter.expect(Precopy::of_xen(outline.memory.size() / PAGE_SIZE));
        let destination = xen::Destination { template: &template, relocation: &relocation, policy: &policy };
        let mut report = way.report().clone();
        template.note_cpu(&outline, chosen, &mut report);
        let mut sink = XenSink::new(out, &outline, destination, &mut report)?;
        let mut taken = source.pump(|addresses, data| {
            counter.pages(session::page_numbers(addresses));
            sink.pages(addresses, data)
        })?;
        way.give(&mut taken.vm);
        let mut account = taken.report;
        account.fields.extend(report.fields);
        account.findings.extend(report.findings);
        sink.finish(&taken.vm, &taken.held, &mut account)?;
        Ok::<_, hyperferry_translate::Error>(Translated { vm: taken.vm, report: account, pages: taken.pages })
    });
    Ok(made.await?)
}

/// The state of KVM's ioctls, which has no memory.
async fn to_kvm(source: Intake, output: Output, progress: &Progress) -> Result<(Output, Translated)> {
    let target = host::kvm_target();
    let counter = progress.clone();
    let made = session::write(output, progress, move |out| {
        counter.expect(Precopy::of_xen(source.outline().memory.size() / PAGE_SIZE));
        let taken = source.pump(|addresses, _| {
            counter.pages(session::page_numbers(addresses));
            Ok(())
        })?;
        let mut report = taken.report;
        let (state, fates) = kvm::localise(&taken.vm, &target)?;
        report.fields.extend(fates.into_iter().map(kvm_fate));
        note_memory(&mut report);
        out.write_all(kvm::to_json(&state)?.as_bytes())?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Translated {
            vm: taken.vm,
            report,
            pages: taken.pages,
        })
    });
    Ok(made.await?)
}

fn kvm_fate(fate: kvm::FieldFate) -> FieldFate {
    let kvm::FieldFate { field, fate, note } = fate;
    let fate = match fate {
        kvm::Fate::Carried => Fate::Carried,
        kvm::Fate::Derived => Fate::Derived,
        kvm::Fate::Defaulted => Fate::Defaulted,
        kvm::Fate::Dropped => Fate::Dropped,
    };
    FieldFate { stage: "model -> KVM", record: "vm".to_owned(), field, fate, note }
}

fn note_memory(report: &mut Report) {
    report
        .record("model -> KVM", "PAGE_DATA")
        .dropped("pages", "memory is no part of the state of KVM's ioctls");
}
