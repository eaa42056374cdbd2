"""Published methods, one function each.

The first formula of each docstring is the loss, or the gradient that reaches the student. Its letters:

    x, x_k     the student's sample, and that of its call k;  x_t: x noised to time t
    y          real data, or the teacher's sample
    F, F^g     the teacher's clean prediction, and guided at scale g;  F_c, F_u: with the condition and without
    C          the critic's clean prediction (DMD2's fake score)
    D          the logit of the discriminator, or the student's clean prediction where there is none
    X_{s,t}    the student's map of states at t to states at s;  f = X_{0,t};  u_{s,t}: its average velocity
    X', f'     the same of the slow student (the target network)
    Phi_{m,t}  the teacher's step from t to m;  v: an instantaneous velocity
    sg, E_t    a value without gradient, and the mean over times t that the method draws
"""
