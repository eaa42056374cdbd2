"""The papers of trajectory distillation, in words (see `paper.py`)."""

from __future__ import annotations

from paper import Paper

PAPERS: tuple[Paper, ...] = (
    Paper(
        name="lcm",
        title="Latent Consistency Models: Synthesizing High-Resolution Images with Few-Step Inference",
        arxiv="2310.04378",
        presets=("lcm", "consistency_distillation", "ect"),
        idea="A consistency model maps every state of a trajectory to the data at its end. It is trained by agreement: "
        "the jump from a state must end where the jump from the state one step of the guided teacher further on ends, "
        "by a slowly moving copy of the student. LCM does this in the latents of Stable Diffusion with steps of 20 of "
        "the 1,000 training times and draws the guidance scale. In several steps the result is noised anew and mapped "
        "again.",
        here="Jumps to time 0 whose target is a teacher step and a jump of the slow student, compared as states by "
        "LCM's element-wise Huber distance. LCM's boundary factors act where the network's clock counts training "
        "steps. Guidance is fixed unless `highest` draws it; `told` names the condition by which the student hears "
        "it. `consistency_distillation` is the older form (arXiv 2303.01469): EDM's grid, a second-order teacher "
        "step, no boundary factors. `ect` (arXiv 2406.14548) takes the step with the data's own noise, so that no "
        "teacher is asked, and shortens it as training goes on.",
        missing="LPIPS as the distance. Consistency training from random weights (iCT) has its weights and distance "
        "here, but no preset.",
        claims=("tdm", "mdt", "mlcm", "cmt"),
    ),
    Paper(
        name="ctm-tcd",
        title="Consistency Trajectory Models: Learning Probability Flow ODE Trajectory of Diffusion",
        arxiv="2310.02279",
        presets=("ctm", "tcd"),
        idea="Jumps to the data are one case of jumps from any time to any earlier one. A student that is told both "
        "times can be sampled with as little fresh noise as wanted, from a deterministic chain to the sampling of "
        "consistency models. CTM compares two jumps after the slow student has taken both ends to the data, beside a "
        "denoising loss. TCD (arXiv 2402.19159) keeps the network of one time: its clean prediction is carried to the "
        "end time by a DDIM step.",
        here="`ctm`: ends uniform below the start, a teacher leg over `skip` points of EDM's grid, `carried` "
        "comparison by the slow student, and denoising as a second term of weight `anchor`. `tcd`: the same ends, "
        "compared where they land. Sampling with share gamma of fresh noise is `Steps(fresh=gamma)`, in the "
        "saved plan too.",
        missing="CTM's adversarial loss; its adaptive balance of the losses; the random number of grid points of the "
        "teacher's leg (`skip` is fixed); LPIPS. A process without a finite clock at the data (VE) cannot be given to "
        "students of two times.",
    ),
    Paper(
        name="pcm",
        title="Phased Consistency Models",
        arxiv="2405.18407",
        presets=("pcm",),
        idea="The trajectory is cut into as many segments as the student has steps, and jumps end at the lower edge of "
        "their own segment instead of the data. That is easier to learn, leaves no need for fresh noise between steps, "
        "and lets the guidance of the teacher be mild.",
        here="The consistency term with the end rule `Edge`: live student as its own target, one guided DDIM step of "
        "48 parts, element-wise Huber distance of states at the edge; sampled deterministically.",
        missing="The adversarial loss on noised states at the edges (the parts exist: `Noised`, `NetworkFeatures`).",
        claims=("mlcm",),
    ),
    Paper(
        name="mlcm",
        title="MLCM / TLCM: Multistep Consistency Distillation of Latent Diffusion Models",
        arxiv="2406.05768",
        presets=("mlcm",),
        idea="One student for two to eight steps, without data. First consistency within eight segments; the states "
        "that jumps start at are the teacher's own, solved from noise, so that training and sampling see the same. "
        "Then consistency to the data between the edges of the segments alone, on the student's own samples noised "
        "again, which is what fewer than eight steps need.",
        here="Two stages by share of the training. The teacher's states take one guided step per segment that is left "
        "behind, as in algorithm 1; the second stage takes three sub-steps of the teacher between edges and four "
        "steps of the student for its samples, noised by fresh noise, which the paper's text says and its algorithm 2 "
        "does not (`student_states(same_noise=True)`). Live student as target, as there. Segments alone "
        "(`first_stage=1`) teach no jump to the data and are run as a deterministic chain.",
        missing="The latent perceptual distance (`metric=Features(...)` takes such a network), preference and "
        "adversarial stages.",
        claims=("mlcm",),
    ),
    Paper(
        name="progressive",
        title="Progressive Distillation for Fast Sampling of Diffusion Models",
        arxiv="2202.00512",
        presets=("progressive",),
        idea="A student learns to do in one DDIM step what its teacher does in two; then it becomes the teacher, and "
        "so on until few steps are left. Every stage is plain regression of clean predictions with a weight that does "
        "not vanish at pure noise.",
        here="One term whose grid halves every `every` updates; both legs are steps of the frozen student of the stage "
        "before, the teacher in the first. Weight max(SNR, 1) or SNR + 1. Guidance acts in the first stage (arXiv "
        "2210.03142) and is inside the student from then on.",
        missing="The guidance scale as an input of the student; the stochastic sampler of the second paper; averaged "
        "weights as the next stage's teacher: it is the live student's.",
        options=("options.every=2500",),
    ),
    Paper(
        name="scm",
        title="Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models",
        arxiv="2410.11081",
        presets=("scm",),
        idea="The step between the two states that must agree goes to zero, which removes its error and asks for the "
        "derivative of the student along the trajectory. What made this unstable is mended: trigonometric time, the "
        "derivative faded in, the residual normalised, a learned weight of noise levels.",
        here="`eulerian_target` to time 0 with forward-mode derivatives (`derivative='difference'` where attention "
        "has none), faded in over `warmup`, the whole residual divided by its norm + 0.1, log-normal noise levels. "
        "`teacher=False` trains from data. Any process: the residual is written for general alpha and sigma, and its "
        "factors are those of the paper on the circle.",
        missing="The learned weight needs a head `uncertainty(time)` on the student, which no model here has. The "
        "changes to the network (double normalisation, positional time embedding). TrigFlow is reached by "
        "conversion, not as the network's own parametrisation.",
    ),
    Paper(
        name="mean-flow",
        title="Mean Flows for One-step Generative Modeling",
        arxiv="2505.13447",
        presets=("mean_flow", "alpha_flow", "lagrangian"),
        idea="The student's output is the average velocity between two times, and one call jumps between them. It "
        "satisfies u = v - (t - s) du/dt along the trajectory, which gives a regression target from one derivative "
        "and a sample of the velocity; no teacher is needed.",
        here="`eulerian_target` with the data's velocity, three quarters of the samples at s = t, adaptive weights. "
        "`teacher=True` takes the teacher's velocity instead, which has less variance and the teacher's bias; "
        "`omega` and `kappa` are the paper's own guidance. `alpha_flow` (arXiv 2510.20771) is the discrete form, from "
        "flow matching towards the limit. `lagrangian` (arXiv 2406.07507) differentiates in the end time alone, which "
        "is cheap, safe with fused attention, and asks the teacher where the student lands.",
        missing="Training at the paper's scale and from random weights: the student begins as the teacher. Improved "
        "MeanFlow's loss is there as a direction (`student_velocity`), not as a preset. alpha-Flow's sigmoid schedule "
        "is linear here.",
        claims=("cmt",),
    ),
    Paper(
        name="cmt",
        title="CMT: Mid-Training for Efficient Learning of Consistency, Mean Flow, and Flow Map Models",
        arxiv="2509.24526",
        presets=("cmt",),
        idea="Between the training of a diffusion model and that of a flow map lies a gap that flow-map training "
        "crosses slowly. Mid-training crosses it by plain regression: jumps between stored states of the teacher's "
        "trajectories. What follows begins near the solution and needs no tricks.",
        here="Jumps between all pairs of stored states (`pairs='all'`, a flow map) or from any to the last "
        "(`to-end`, a consistency function). The times are those that the store names. `mf_rae` (arXiv 2511.13019) "
        "goes on with MeanFlow of the teacher's velocity and ends with the data's, in one run.",
        missing="LPIPS as the distance; the long trainings that follow.",
        claims=("cmt",),
    ),
    Paper(
        name="shortcut",
        title="One Step Diffusion via Shortcut Models",
        arxiv="2410.12557",
        presets=("shortcut",),
        idea="One jump must equal two of half its length, by a slow copy of the student; jumps of no length are "
        "anchored at flow matching. Training is one stage, and the student runs in any power of two of steps.",
        here="Two terms that divide the batch: velocities at s = t, and dyadic jumps down to 2^-7 whose two halves "
        "are the slow student's. `teacher=True`, the default, anchors at the teacher's velocity, which makes it a "
        "distillation; False at the data's, as in the paper.",
        missing="The paper trains from random weights and gives jumps an eighth of the batch; a quarter here "
        "(`bootstrap`).",
    ),
    Paper(
        name="instaflow",
        title="InstaFlow: One Step is Enough for High-Quality Diffusion-Based Text-to-Image Generation",
        arxiv="2309.06380",
        presets=("instaflow", "reflow", "perflow"),
        idea="Noise and samples of a teacher are joined by curved paths, whose map no network of the same size learns "
        "in one step. Reflow stores pairs of noise and sample, and trains a flow on the straight lines between them: "
        "the laws stay, the paths straighten. A flow that is nearly straight is then distilled into one step by plain "
        "regression on its own pairs.",
        here="Three runs: a store of the teacher's trajectories, `reflow` on it, a store of the straightened student, "
        "`instaflow` on that. Guidance is in the store. `perflow` (arXiv 2405.07510) straightens within windows of "
        "time and solves the teacher while training, so that it needs no store.",
        missing="LPIPS in the last stage (`metric` takes a distance). The stacked network of the larger model. "
        "The cost of the second pairs is exact at 600,000 passes; a smaller budget counts them "
        "too low, in favour of reflow.",
        claims=("instaflow",),
    ),
    Paper(
        name="slimflow",
        title="SlimFlow: Training Smaller One-Step Diffusion Models with Rectified Flow",
        arxiv="2407.12718",
        presets=("slim_flow",),
        idea="A one-step student that is also smaller than its teacher cannot begin with the teacher's weights. "
        "Annealing reflow starts with independent noise, which is ordinary flow matching, and ends with the "
        "teacher's pairs. The one-step student then learns from the exact pairs and, from unlimited fresh noise, from "
        "two steps of its own small flow.",
        here="Two stages in one run on one store; the frozen flow is the averaged student of the first, the start of "
        "the second its live one, as in the code. beta falls linearly from 1 to 0 over `anneal` of the reflow; the "
        "middle of the two steps is uniform in 0.2 to 0.8 as in the code. `symmetry` takes a flip, which is right only "
        "where the teacher commutes with it. A smaller student is given as a module.",
        missing="The pairs of the second stage are the teacher's, not the small flow's. LPIPS; the exponential and "
        "cosine schedules.",
        claims=("slimflow",),
        options=("options.reflow_steps=6000", "options.distil_steps=4000"),
    ),
    Paper(
        name="mdt-dist",
        title="Few-step Flow for 3D Generation via Marginal-Data Transport Distillation",
        arxiv="2509.04406",
        presets=("mdt",),
        idea="The student learns the average velocity from t to the data with a network of one time. Velocity matching "
        "is MeanFlow's equation with the end at the data and the teacher's velocity. Velocity distillation judges the "
        "student's own samples: the velocity that its map implies, minus the teacher's, takes the place of a second "
        "network's score.",
        here="`eulerian_target` to time 0 with a central difference (`derivative`, `delta`; the paper takes a backward "
        "one of 0.01), and `velocity_distillation` with the same residual. That is the true gap of velocities carried "
        "to the data by the Jacobian of the student's map; the tests check this. The released code normalises the "
        "derivative alone, which moves the fixed point; here the whole residual is normalised. Noise and times of the "
        "two terms are drawn apart, those of the paper are shared. Guidance of 41 and 101 are the authors' 40 and "
        "100 for TRELLIS; other models want far less.",
        missing="TRELLIS itself and its sparse latents; gradient clipping by a running percentile; the small learning "
        "rates belong to those guidance scales. Networks that predict clean data: nothing holds the map at the data, "
        "and it collapses.",
        claims=("mdt", "mdt_voxels"),
        options=("guidance=3", "options.sample_guidance=3"),
    ),
    Paper(
        name="accvideo",
        title="AccVideo: Accelerating Video Diffusion Model with Synthetic Dataset",
        arxiv="2503.19462",
        presets=("accvideo",),
        idea="Noised data are not states that the teacher visits, and its answers there may be useless. AccVideo "
        "trains on stored trajectories alone: the student's few steps regress the jumps between key states, and an "
        "adversary with one head per key time compares the student's states with the stored ones, which needs no "
        "noising because both live at the same time.",
        here="Jumps between consecutive key states, which are those of the student's own steps; the store must hold "
        "them. The adversary judges the state that the student's call leads to, one discriminator each by `Heads`, "
        "features by `source` (the samples themselves unless given; `NetworkFeatures('teacher', ...)` is the paper's).",
        missing="The queues of generated states: the student's chain is run anew instead, which costs calls and is "
        "never out of date. Regression and adversary share an update, the paper steps them apart. Features from "
        "another block at the last key time.",
        claims=("accvideo",),
    ),
    Paper(
        name="yonos",
        title="You Only Need One Step: Fast Super-Resolution with Stable Diffusion via Scale Distillation",
        arxiv="2401.17258",
        presets=("yonos",),
        idea="Super-resolution by a factor of two is nearly solved by one step; by four or eight it is not. Scale "
        "distillation teaches the harder task by the model of the easier one: at the same noisy state the teacher, "
        "which sees the better small picture, says what the student should predict. Where the student's picture is a "
        "function of the teacher's, the targets have the right mean and less variance than the data.",
        here="Regression of clean predictions at the same state and time with weight SNR + 1. Conditions named "
        "`teacher.NAME` reach the teacher in place of NAME; make both from one degradation, or the mean is wrong. "
        "Repeat with the student as teacher for larger factors.",
        missing="The decoder's fine-tuning, on which the paper's perceptual claims rest. Pictures of two scales are "
        "the caller's batches: no recipe makes them.",
        claims=("yonos",),
    ),
)
