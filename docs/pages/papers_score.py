"""The papers of score distillation, adversaries and moments, in words (see `paper.py`)."""

from __future__ import annotations

from paper import Paper

PAPERS: tuple[Paper, ...] = (
    Paper(
        name="diff-instruct",
        title="Diff-Instruct: A Universal Approach for Transferring Knowledge From Pre-trained Diffusion Models",
        arxiv="2305.18455",
        presets=("diff_instruct",),
        idea="A one-step generator has samples but no score. A second network, the critic, learns the score of those "
        "samples by denoising; critic minus teacher, at noised samples, is then the gradient of the Kullback-Leibler "
        "divergence of the generator from the teacher, averaged over noise levels. Neither data nor guidance is "
        "needed.",
        here="One branch with the direction G - F (clean predictions of critic and teacher), no normaliser, log-normal "
        "noise levels for branch and critic, one update of the critic per update of the student. Differences of clean "
        "predictions stand for differences of scores: the factor alpha/sigma^2 between them is a weight of the noise "
        "level. The call starts at sigma 1 where noise has no upper end, else at the noisiest time.",
        missing="The paper's second use, improving a GAN's generator. The dropout masks that its networks share.",
        claims=("sim",),
    ),
    Paper(
        name="dmd",
        title="One-step Diffusion with Distribution Matching Distillation",
        arxiv="2311.18828",
        presets=("dmd",),
        idea="Diff-Instruct's gradient with two additions: each sample's gradient is divided by the mean absolute "
        "error of the teacher on it, so that all noise levels pull alike, and the student also regresses results of "
        "the teacher's own sampler from the same noise, which keeps it from dropping modes. The teacher is guided.",
        here="Direction G - F at the guidance asked for, weight 1 / mean|x - F| in float64, uniform noise levels from "
        "2 % to 98 % of the range; the regression is the term `pairs` on a trajectory store. Its distance is the mean "
        "square, the paper's LPIPS (`Pairs(distance=...)` takes another).",
        missing="LPIPS is not among the dependencies.",
        claims=("sim",),
    ),
    Paper(
        name="dmd2",
        title="Improved Distribution Matching Distillation for Fast Image Synthesis",
        arxiv="2405.14867",
        presets=("dmd2",),
        idea="DMD without the regression. What that held in place is held by a critic that is updated five times per "
        "update of the student, and by an adversary on the critic's own features of noised real data and samples. "
        "With several steps the student is trained on the states that it will meet: its earlier calls are run without "
        "a gradient and noised again (backward simulation).",
        here="Roll-out `BackwardSimulation` with fresh noise, DMD's branch, `Denoising` critic with ratio 5, softplus "
        "adversary on the critic's middle, trained together with the critic. The first critic update reuses the "
        "samples that the student was judged on, the others simulate new ones. The call is drawn per sample; "
        "`each=False` draws one per batch as the paper does. `simulate=False` and `reads='teacher'` are FastGen's "
        "port. `step_condition=True` tells the critic which call a sample comes from (a learned vector per call on the "
        "time embedding): the paper's critic follows the mixture of all calls, which can be right while no call is.",
        missing="The adversary's heads are pointwise, the paper's convolutional (`Heads(kind='conv')` makes such "
        "ones). Warm start of the one-step SDXL student on pairs: train `dmd` with its pairs first.",
        claims=("tdm", "flash_dmd", "decoupled_dmd"),
    ),
    Paper(
        name="f-distill",
        title="One-step Diffusion Models with f-Divergence Distribution Matching",
        arxiv="2502.15681",
        presets=("f_distill",),
        idea="The gradient of any f-divergence is that of the reverse KL divergence times a function h of the density "
        "ratio data / student, and DMD2's adversary estimates that ratio. Forward KL (h = r) weighs up what the "
        "student lacks and so covers modes; reverse KL (h = 1) is DMD2.",
        here="DMD2 with the weight `Ratio`: the ratio is exp of the adversary's logit, clipped to [0.1, 20], divided "
        "by its running mean in each tenth of the time range, and h by its mean over the batch. The features come "
        "from the critic's own call, so that the weight costs no pass. Seven divergences by name.",
        missing="FastGen reads the teacher's features instead.",
        options=("options.divergence=jensen_shannon",),
    ),
    Paper(
        name="sid",
        title="Score identity Distillation: Exponentially Fast Distillation of Pretrained Diffusion Models for "
        "One-Step Generation",
        arxiv="2404.04057",
        presets=("sid",),
        idea="Minimise the Fisher divergence, the squared difference of scores, instead of KL. Score identities turn "
        "it into a loss, (F - G).(F - x) - alpha |F - G|^2, that stays usable although the critic's score is an "
        "estimate. It is differentiated through the noised sample into teacher and critic, which costs a backward "
        "pass of both.",
        here="Direction `Identity(alpha)`, differentiated with respect to the sample alone: no gradient of weights is "
        "computed. alpha 1/2 gives half the exact Fisher gradient, 1 the one with the sampling law frozen; the "
        "paper's 1.2 turns the update of a Gaussian's mean round where the student's noised variance exceeds 3.5 "
        "times the teacher's, so it wants a good start. `guidance` and `critic_guidance` alike are long-short "
        "guidance (arXiv 2406.01561). On bounded processes the noise levels are DMD's, else those of the code.",
        missing="SiDA's adversary in one step (few-step SiD has it).",
        claims=("sim",),
        options=("options.alpha=1.0",),
    ),
    Paper(
        name="sid-few-step",
        title="Few-Step Diffusion via Score identity Distillation",
        arxiv="2505.12674",
        presets=("sid_few_step",),
        idea="The law that is matched is the uniform mixture of what the student makes in its first, second, ... last "
        "call. Where teacher and critic are exact all calls share the optimum, so that one student and one critic "
        "serve them all and no step is embedded. Guidance is replaced by what the critic is told: nothing (Zero-CFG) "
        "or a negative guidance (Anti-CFG), which pushes samples along their own conditional direction.",
        here="SiD's identity at alpha 1 on a roll-out to a random call. On flows the noise levels are those of the "
        "released code for transformers (arXiv 2509.25127), logit-normal (log 2, 1.6), elsewhere DMD's. The weight is "
        "SiD's 1 / mean|x - F|; that code's 1 - sigma is `signal=True`. It leaves little of the noisiest levels, which "
        "tell where the whole mixture lies, and students of several calls collapse at learning rates that the other "
        "weight bears. `critic_rate` lets the critic follow faster, which large learning rates need. The drawn call is "
        "one per sample, the paper's one per batch. `step_condition=True` departs from the paper: the critic is told "
        "the call, because a critic of the mixture leaves open what each call makes. The adversary has small heads on "
        "the critic's features, where the paper reads features as logits (`Heads(kind='mean')`).",
        missing="The halving of both losses when the adversary sets in.",
        claims=("sid_few_step",),
        options=("options.critic_guidance=0.0",),
    ),
    Paper(
        name="sim",
        title="One-Step Diffusion Distillation through Score Implicit Matching",
        arxiv="2410.16794",
        presets=("sim",),
        idea="SiD's identity holds for any distance d between scores, with d' of the difference in place of the "
        "difference. The paper takes the pseudo-Huber distance: every sample's pull has about the same length, which "
        "is said to make training faster and less sensitive to the learning rate, without a hand-made weight.",
        here="`Identity(1)` with the slope `Huber`, whose norm is over a whole sample; `squared` makes it SiD at alpha "
        "1 and `Power` the higher powers. The distance is taken of clean predictions, with the constant 0.00054 times "
        "the root of the dimension (that of improved consistency training).",
        missing="The paper's constant is not published.",
        claims=("sim",),
    ),
    Paper(
        name="tdm",
        title="Learning Few-Step Diffusion Models by Trajectory Distribution Matching",
        arxiv="2503.06674",
        presets=("tdm",),
        idea="A student of K deterministic steps whose state after each step is matched in law with the teacher's, at "
        "the noise levels between that step's end and its start. The levels of different steps do not overlap, so "
        "that one critic follows K laws without being told the step. Needs no data and no solving of the teacher's "
        "equation.",
        here="A roll-out without fresh noise; `Interval` draws the noise levels of the step, `onward` noises from the "
        "state after the step by the forward kernel; element-wise pseudo-Huber (1e-3) over DMD's normaliser, as in "
        "the code. The critic regresses clean data, weighed by min(SNR, 5) and by the tempered density ratio of "
        "direct and onward noising, at five times the student's learning rate. `overlap=True` is the paper's "
        "ablation.",
        missing="Telling student and critic the number of steps (TDM-unify), fine-tuning of the teacher beforehand.",
        claims=("tdm",),
    ),
    Paper(
        name="decoupled-dmd",
        title="Decoupled DMD: CFG Augmentation as the Spear, Distribution Matching as the Shield",
        arxiv="2511.22677",
        presets=("decoupled_dmd",),
        idea="DMD's gradient with a guided teacher is a sum: matching (critic minus conditional teacher), and guidance "
        "(conditional minus unconditional teacher). The second makes a few-step model of a text-to-image teacher and, "
        "alone, collapses; the first corrects it. Each wants noise levels of its own: guidance those cleaner than the "
        "student's input, matching all.",
        here="Two branches, `DistributionMatching` and `GuidanceDifference`, each with its noise, its noise levels and "
        "DMD's normaliser with a floor of 0.1 (that of CDM; the paper gives none). `below_last_call` draws below the "
        "student's own time, before any shift of the schedule. With one shared re-noising the sum is DMD, which a test "
        "checks. Mean and variance in place of the critic: the term `MeanVariancePenalty`. `step_condition=True` tells "
        "the critic its call: on a line two guided calls collapse without it, whatever the floor or the normaliser "
        "([guided-line.md](guided-line.md)).",
        missing="The paper's runs keep DMD2's adversary for SDXL; here it is left out.",
        claims=("decoupled_dmd",),
    ),
    Paper(
        name="flash-dmd",
        title="Flash-DMD: Towards High-Fidelity Few-Step Image Generation with Efficient Distillation and Joint "
        "Reinforcement Learning",
        arxiv="2511.20549",
        presets=("flash_dmd",),
        idea="Noisy calls decide structure and are matched; clean calls decide texture and get an adversary on pixels "
        "instead. The critic, no longer an adversary's backbone, is pulled towards the student's weights after each "
        "update, so that one or two updates suffice where DMD2 makes five.",
        here="DMD2's branch on the first half of the calls; `LaterCall` finishes the chain without a gradient, noises "
        "the result to a clean call and lets an adversary judge that call alone. `source=Encoder(...)` gives it a "
        "frozen encoder with the decoder before it; without one it reads the teacher's features of noised samples. "
        "Where structure ends, the adversary's weight and the pull are not published: half, DMD2's and SenseFlow's.",
        missing="The second stage (preference pairs at noisy calls, alternating with distillation), SAM.",
        claims=("flash_dmd",),
        options=("options.ratio=1",),
    ),
    Paper(
        name="ladd",
        title="Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation",
        arxiv="2403.12015",
        presets=("ladd",),
        idea="An adversary is all: heads on the frozen teacher's features of noised latents tell samples from data, "
        "and the noise level of those features chooses between structure and texture. The student starts from noised "
        "latents; the data are the teacher's own samples.",
        here="Roll-out `NoisedData`, hinge loss, heads on the teacher's features at logit-normal noise levels, "
        "approximate R1 (arXiv 2501.08316). Samples of the teacher serve as data where a recipe names no other.",
        missing="Convolutional heads on tokens laid out as a map; a discriminator told of the prompt.",
        options=("options.penalty=1000",),
    ),
    Paper(
        name="mmd-ddm",
        title="Fast Inference in Denoising Diffusion Models via MMD Finetuning",
        arxiv="2301.07969",
        presets=("mmd_ddm",),
        idea="A pretrained model with a fixed deterministic sampler of few steps is one generator. Its samples are "
        "compared with data by the maximum mean discrepancy in a feature space, an unbiased two-sample statistic, and "
        "the whole chain is differentiated. No teacher, no critic, a few hundred updates.",
        here="`BackwardSimulation(last=True, through=True)` and the term `Moments` with a cubic kernel; the linear one "
        "matches means alone, the radial one wants features of unit size and gets them. The grid begins at the "
        "noisiest time, the paper's at 1 - 1/steps of the range. Features are any function of samples: judge by "
        "others. The paper's models have no conditions. Here sample i of the student and of the data share theirs, so "
        "the value of these pairs is left out of the statistic: kept, it would push the conditions apart.",
        missing="Inception and CLIP are not shipped.",
        claims=("mmd_ddm",),
        options=("options.kernel=radial",),
    ),
    Paper(
        name="msd",
        title="Multi-student Diffusion Distillation for Better One-step Generators",
        arxiv="2410.23274",
        presets=("dmd2",),
        idea="Conditions are shared out among several one-step students, each distilled on its own part; a sample "
        "costs one network, storage grows with their number. A student smaller than the teacher first learns to "
        "denoise as the teacher does, because it cannot begin with its weights.",
        here="`train.students` of a recipe, with any method: labels are shared out in order, embeddings by slices "
        "along their first principal axis and then the nearest mean. The students are saved as one network "
        "(`fewstep.pipelines.Routed`) that sends each sample to its owner, so that every pipeline runs it. Small "
        "students: the arms of the claim below.",
        missing="Pairs for the regression are those of a student's own conditions; the paper shares the full set. A "
        "recipe trains students of the teacher's size.",
        claims=("msd",),
        options=("train.students=4", "steps=1"),
    ),
)
